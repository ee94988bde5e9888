"""The session of the S3 client, whose downloads run in threads.

aiobotocore builds, signs, judges and repeats every request; this is how one is sent whose body somebody is `receiving`:
by botocore's own blocking session, in a thread that takes the body from its socket into one buffer.  aiohttp copies it
three times in small pieces, and decrypts it, all on the loop and under the interpreter's lock.

A body that breaks off is a failure of the request, which is made again.  One that is cancelled ends its thread: at once
when the body is on its way, else when the connection's time is over.

Loaded with aioboto3, on the first request.
"""

from __future__ import annotations

from typing import Any

from aiobotocore.awsrequest import AioAWSResponse  # type: ignore[import-untyped]
from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]
from anyio import to_thread
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError  # type: ignore[import-untyped]
from botocore.httpsession import URLLib3Session  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError, TimeoutError

from artfs.objects.s3_bodies import Reception, wanted

RANGE = ("content-range", "content-length")
"""What is told of a body that is received here."""


class Session(AIOHTTPSession):  # type: ignore[misc]
    """What aiobotocore makes of `AioConfig.http_session_cls`, with the client's options."""

    def __init__(self, *, connector_args: Any = None, **options: Any) -> None:
        super().__init__(connector_args=connector_args, **options)
        self._blocking = URLLib3Session(**options)

    async def __aexit__(self, *error: Any) -> None:
        self._blocking.close()
        await super().__aexit__(*error)

    async def send(self, request: Any) -> Any:
        body = wanted.get()
        if body is None:
            return await super().send(request)
        try:
            return await to_thread.run_sync(self._receive, request, body, abandon_on_cancel=True)
        except Exception:
            raise  # as the thread did: the request may be made again
        except BaseException:  # cancelled
            body.stop()
            raise

    def _receive(self, request: Any, body: Reception) -> Any:
        response = self._blocking.send(request)
        try:
            body.take(response.raw, response.status_code)
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except HTTPError as error:
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        if response.status_code < 300:  # parsing a date takes longer than all else
            headers = {name: headers[name] for name in RANGE if name in headers}
        answer = AioAWSResponse(response.url, response.status_code, headers, None)
        answer._content = body.message
        return answer
