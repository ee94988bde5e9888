"""The S3 provider: objects in a bucket of AWS or of any server that speaks its protocol, through aioboto3.

Every call is made on asyncio (`artfs.aio`), ends within `2 × timeout` and a second for each MiB that it moves, and
raises no error of a library (`artfs.objects.s3_errors`).

* What is sent carries its MD5, and a server refuses what does not match.  What is received is exactly what was asked
  for: status, range and length are compared.
* A file above `MULTIPART` goes in parts of `part_size` or more, `uploads` of them at once and in memory, for all
  providers with this endpoint together.  An upload that fails or is cancelled is aborted; one whose process is killed
  stays until a lifecycle rule of the bucket (AbortIncompleteMultipartUpload) ends it.
* Not every server knows conditional requests, and some ignore them: `create` and `copy` look before and after, which is
  all that such a server can give.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import anyio
from anyio import to_thread

from artfs.aio import Bridge
from artfs.errors import ArtfsError, BusyError, ExistsError, InvalidError, NotFoundError, UnavailableError
from artfs.objects import Capabilities, Info, check_name
from artfs.objects.s3_client import Body, Client, Endpoint, Place, client_for, release
from artfs.objects.s3_errors import attempts_of, code_of, ours, status_of, translated

MIB = 1 << 20
MULTIPART = 16 * MIB
PARTS = 10_000
LARGEST = 5 << 40
COPY_PART = 1 << 30
"""A larger object is copied in parts of this size, so that none takes long."""
SLOWEST = MIB
"""Bytes per second below which a request counts as stuck."""
DELETED_AT_ONCE = 1000
EXPIRES = 7 * 86_400
"""Seconds that a signed URL may be valid, at most."""

P = ParamSpec("P")
R = TypeVar("R")
