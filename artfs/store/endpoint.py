"""A small HTTP/1.1 server on anyio: its address, its connections and its end.  What is answered is a `Site`'s.

At most `CONNECTIONS` at once: for the next, one that only waits for another request is ended, else it is told 503.  At
its end the endpoint takes no more requests, and those that are being answered have `DRAIN` to finish.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from socket import gethostname
from typing import cast

import anyio
from anyio import ClosedResourceError
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup

from artfs.errors import UnavailableError
from artfs.store.connection import GONE, Aborted, Connection, Counters, Site

log = logging.getLogger(__name__)

CONNECTIONS = 256
DRAIN = 5.0
"""Seconds."""
ACCEPT_RETRY = 0.1
EVERYWHERE = ("0.0.0.0", "::")
"""Addresses that are none for a URL: the host's name stands for them."""


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """Since it began: requests, connections that were refused, bytes of bodies that came and went."""

    connections: int
    requests: int
    refused: int
    received: int
    sent: int


class Endpoint:
    """`base_url`, without a slash at its end, is known once it is open."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.base_url = ""
        self.port = 0
        self.draining = False
        self.connections: dict[Connection, None] = {}
        self.counters = Counters()
        self._listeners: list[SocketListener] = []

    async def open(self, host: str, port: int) -> None:
        """Errors: UnavailableError if the address cannot be had."""
        try:
            listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
        except OSError as error:
            raise UnavailableError(
                f"the endpoint cannot listen on {host}:{port}: {error.strerror or error}; set ARTFS_ENDPOINT"
            ) from error
        self._listeners = cast(list[SocketListener], list(listener.listeners))
        self.port = self._listeners[0].extra(SocketAttribute.local_port)
        name = gethostname() if host in EVERYWHERE else f"[{host}]" if ":" in host else host
        self.base_url = f"http://{name}:{self.port}"

    async def run(self) -> None:
        """Serve until cancelled; what is being answered then has `DRAIN` to end."""
        server = anyio.CancelScope(shield=True)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._serve, server)
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._drain()
                    server.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._close()

    async def _serve(self, scope: anyio.CancelScope) -> None:
        with scope:
            async with anyio.create_task_group() as tasks:
                for listener in self._listeners:
                    tasks.start_soon(self._accept, listener, tasks)

    async def _accept(self, listener: SocketListener, tasks: TaskGroup) -> None:
        while True:
            try:
                stream = await listener.accept()
            except ClosedResourceError:
                return
            except OSError as error:  # too many descriptors, or the client has gone already
                log.warning("the endpoint cannot take a connection: %s", error)
                await anyio.sleep(ACCEPT_RETRY)
            else:
                tasks.start_soon(self._connected, stream)

    async def _connected(self, stream: SocketStream) -> None:
        async with stream:
            connection = Connection(self.site, self.counters, stream)
            full = len(self.connections) >= CONNECTIONS and not self._make_room()
            self.connections[connection] = None
            try:
                await (connection.refuse() if full else connection.run())
            except (*GONE, Aborted, TimeoutError) as error:
                log.debug("a client has gone: %r", error)
            except Exception:
                log.exception("a connection of the endpoint ended")
            finally:
                self.connections.pop(connection, None)

    def _make_room(self) -> bool:
        """End the connection that is kept for its next request for the longest time; whether there is one."""
        for connection in self.connections:
            if connection.kept:
                connection.end()
                del self.connections[connection]
                return True
        return False

    def statistics(self) -> EndpointStatistics:
        now = self.counters
        return EndpointStatistics(len(self.connections), now.requests, now.refused, now.received, now.sent)

    async def _close(self) -> None:
        for listener in self._listeners:
            await listener.aclose()

    async def _drain(self) -> None:
        self.draining = True
        await self._close()
        for connection in self.connections:
            connection.end()
        with anyio.move_on_after(DRAIN):
            while self.connections:
                await anyio.sleep(0.01)
