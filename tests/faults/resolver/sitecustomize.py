"""Put before everything else by PYTHONPATH: one name that resolves to this machine, unless the file named by
FAULTS_RESOLVER exists.  It stands for a name server that fails.  Each refusal is a letter in that file's `.refused`."""

import os
import socket
from typing import Any

NAME = "s3.faults.invalid"
_switch = os.environ.get("FAULTS_RESOLVER", "")
_getaddrinfo = socket.getaddrinfo


def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    if host in (NAME, NAME.encode()):
        if os.path.exists(_switch):
            with open(f"{_switch}.refused", "a", encoding="ascii") as refused:
                refused.write("x")
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return _getaddrinfo(host, *arguments, **options)


if _switch:
    socket.getaddrinfo = getaddrinfo
