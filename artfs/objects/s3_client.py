"""The clients of S3 endpoints: one for each loop and endpoint, with its pool of connections, shared by all providers.

A client exists as long as a provider uses it, and no longer than its loop.  All of this runs on asyncio, below
`artfs.aio.Bridge`.

A client tries again by itself, `DEFAULT_MAX_RETRIES` times if its URL says nothing else, after pauses that are random
and grow; a budget of tries that successes fill up makes it give up sooner while nothing works.  Whoever calls sets a
limit to the whole (`artfs.objects.s3_uploads`).  It adapts to a server that is too busy by what it sends at once: half
as much after each such answer, one part more after each success.  botocore's own "adaptive" mode holds back every
request instead: with a third of the answers 503 a hundred small reads took 48 s here, not 3 s, and minutes after the
server was well again.

Nothing here is imported before the first request: botocore takes half a second.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar

from artfs.errors import InvalidError, NoAccessError, UnavailableError
from artfs.objects.s3_bodies import Body, content_md5
from artfs.objects.s3_errors import Refused
from artfs.types import DEFAULT_MAX_RETRIES

CONNECTIONS = 128
BUSY = (429, 503)
SMALL = 64 << 10
"""A body up to here is sent without asking first (`Expect: 100-continue`), which takes a round trip."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a provider's URL says.  `prefix` without slashes at its ends; `addressing`: "auto", "path" or "virtual";
    `ca`: a file of certificates; `flavor`: "" or "ibm", which decides where the credentials are; `retries`: a
    number, or "" for the default."""

    bucket: str
    prefix: str = ""
    endpoint_url: str = ""
    region: str = ""
    addressing: str = "auto"
    sse: str = ""
    kms_key: str = ""
    ca: str = ""
    flavor: str = ""
    retries: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What makes two providers share a client.  `timeout` in seconds; `uploads`: parts that are sent at once."""

    place: Place
    timeout: float
    uploads: int

    @classmethod
    def of(cls, place: Place, timeout: float, uploads: int) -> Endpoint:
        return cls(replace(place, bucket="", prefix="", sse="", kms_key=""), timeout, uploads)


@dataclass(slots=True)
class Client:
    """`api`: aioboto3's; `sending` is held by each part that is sent, which are `uploads` if the server can keep up.
    `says_md5`: the ETag of a part is its MD5, as far as that is known."""

    api: Any
    uploads: int
    stack: AsyncExitStack
    sending: anyio.CapacityLimiter = field(init=False)
    users: set[object] = field(default_factory=set)
    says_md5: bool = True

    def __post_init__(self) -> None:
        self.sending = anyio.CapacityLimiter(self.uploads)

    def is_busy(self) -> None:
        """The server says so."""
        self.sending.total_tokens = max(int(self.sending.total_tokens) // 2, 1)

    def has_sent(self) -> None:
        self.sending.total_tokens = min(int(self.sending.total_tokens) + 1, self.uploads)


@dataclass(slots=True)
class _Clients:
    """Of one loop."""

    by_endpoint: dict[Endpoint, Client]
    making: anyio.Lock
    end: AsyncGenerator[None, None]


failed: ContextVar[list[Exception]] = ContextVar("artfs.objects.s3_client.failed")
"""Of the call that is being made: what its attempts have met so far."""

_clients: RunVar[_Clients] = RunVar("artfs.objects.s3_client")


async def client_for(endpoint: Endpoint, user: object) -> Client:
    """The loop's client, which `release` gives back.  Errors: InvalidError, DeniedError, botocore's."""
    clients = _clients.get(None)
    if clients is None:
        found: dict[Endpoint, Client] = {}
        clients = _Clients(found, anyio.Lock(), _until_the_loop_ends(found))
        _clients.set(clients)
        await anext(clients.end)
    client = clients.by_endpoint.get(endpoint)
    if client is None:
        async with clients.making:
            client = clients.by_endpoint.get(endpoint)
            if client is None:
                client = clients.by_endpoint[endpoint] = await _made(endpoint)
    client.users.add(user)
    return client


async def release(endpoint: Endpoint, user: object) -> None:
    clients = _clients.get(None)
    client = clients.by_endpoint.get(endpoint) if clients is not None else None
    if clients is None or client is None:
        return
    client.users.discard(user)
    if not client.users:
        del clients.by_endpoint[endpoint]
        await client.stack.aclose()


async def _until_the_loop_ends(clients: dict[Endpoint, Client]) -> AsyncGenerator[None, None]:
    """A loop that shuts down closes its generators that have begun: that is where connections are closed."""
    try:
        yield
    finally:
        while clients:
            await clients.popitem()[1].stack.aclose()


async def _made(endpoint: Endpoint) -> Client:
    place = endpoint.place
    if place.ca and not await to_thread.run_sync(os.path.isfile, place.ca):
        raise InvalidError(f"ca: {place.ca} is not there; name the file of certificates of the endpoint's authority")
    try:
        aioboto3 = await to_thread.run_sync(importlib.import_module, "aioboto3")
    except ModuleNotFoundError as error:
        raise UnavailableError("aioboto3, which S3 needs, is not installed: pip install 'artfs[s3]'") from error
    config = importlib.import_module("aiobotocore.config").AioConfig(
        signature_version="s3v4",
        connect_timeout=max(min(endpoint.timeout / 2, 10.0), 0.5),
        read_timeout=endpoint.timeout,
        retries={"mode": "standard", "total_max_attempts": 1 + int(place.retries or DEFAULT_MAX_RETRIES)},
        max_pool_connections=CONNECTIONS,
        http_session_cls=importlib.import_module("artfs.objects.s3_session").Session,
        tcp_keepalive=True,
        # Bodies are checked by Content-MD5; SHA-256 of each, on the loop, would take most of the time of an upload.
        s3={"addressing_style": place.addressing, "payload_signing_enabled": False},
        # Servers older than these checksums refuse what carries them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    stack = AsyncExitStack()
    try:
        made = aioboto3.Session().client(
            "s3",
            endpoint_url=place.endpoint_url or None,
            region_name=place.region or os.environ.get("AWS_REGION") or None,
            verify=place.ca or None,
            config=config,
            **_keys(place),
        )
        api = await stack.enter_async_context(made)
    except ValueError as error:  # what botocore says of an endpoint that is no URL
        raise InvalidError(f"endpoint_url: {place.endpoint_url}: {error}; correct the provider's URL") from error
    client, events = Client(api, endpoint.uploads, stack), api.meta.events
    events.register_last("before-call.s3", _without_asking)
    events.register_last("before-call.s3.DeleteObjects", _with_md5)
    events.register_first("needs-retry.s3", partial(_remember, client))
    if place.endpoint_url:
        events.register_last("before-parameter-build.s3", _stay)
    return client


def _keys(place: Place) -> dict[str, str]:
    """Credentials that are not where botocore looks (environment, profile, role)."""
    if place.flavor != "ibm":
        return {}
    names = {"aws_access_key_id": "IBM_COS_ACCESS_KEY", "aws_secret_access_key": "IBM_COS_SECRET_KEY"}
    keys = {argument: os.environ.get(name, "") for argument, name in names.items()}
    if not all(keys.values()):
        raise NoAccessError("there are no credentials for IBM COS: set IBM_COS_ACCESS_KEY and IBM_COS_SECRET_KEY")
    return keys


def _without_asking(params: dict[str, Any], **_: Any) -> None:
    body = params.get("body")
    if isinstance(body, Body) and len(body) <= SMALL:
        params["headers"].pop("Expect", None)


def _remember(client: Client, response: Any = None, caught_exception: Exception | None = None, **_: Any) -> None:
    status = 0 if response is None else response[0].status_code
    if status in BUSY:
        client.is_busy()
    failures = failed.get(None)
    if failures is not None and caught_exception is not None:
        failures.append(caught_exception)
    elif failures is not None and status >= 400:
        failures.append(Refused(response[1]))


def _stay(context: dict[str, Any], **_: Any) -> None:
    """botocore looks for the region of a bucket that is elsewhere: for ever, if the server always says that it is."""
    context["s3_redirect"]["redirected"] = True


def _with_md5(params: dict[str, Any], **_: Any) -> None:
    """Many servers want it for this request, which newer clients only give a CRC."""
    params["headers"]["Content-MD5"] = content_md5(params["body"])
