"""What errors of S3 clients mean: one table, from a server's code or a library's class to our error and its remedy.

Messages name the object, the bucket, the endpoint and what to do; they hold no URL of a request, which could be signed,
and no key.  A server's own words appear only where its code is not known here.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from artfs.errors import (
    ArtfsError,
    BusyError,
    InvalidError,
    NoAccessError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)

_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, or a role; for IBM IBM_COS_ACCESS_KEY and"
    " IBM_COS_SECRET_KEY) for this process"
)


class Meaning(NamedTuple):
    kind: type[ArtfsError]
    reason: str
    remedy: str


_NO_OBJECT = Meaning(NotFoundError, "there is no such object", "")
_NOTHING = Meaning(NotFoundError, "it is not there", "")
_NO_BUCKET = Meaning(NotFoundError, "there is no such bucket", "make it, or name another one")
_BAD_KEY = Meaning(NoAccessError, "the credentials are refused", _CREDENTIALS)
_OLD_KEY = Meaning(NoAccessError, "the credentials have expired", "renew the session token or the login")
_NO_KEY = Meaning(NoAccessError, "there are no credentials", _CREDENTIALS)
_FORBIDDEN = Meaning(NoAccessError, "it is not permitted", "allow the credentials to list, get, put and delete there")
_KMS = Meaning(NoAccessError, "the encryption key cannot be used", "check kms_key, and allow the credentials to use it")
_CLOCK = Meaning(InvalidError, "the clock of this machine is wrong", "set the time, as with NTP")
_REGION = Meaning(InvalidError, "the bucket is in another region", "set region in the provider's URL")
_NAME = Meaning(InvalidError, "that is no name of a bucket", "correct the provider's URL")
_REQUEST = Meaning(InvalidError, "the server does not take the request", "check the options of the provider's URL")
_PARTS = Meaning(InvalidError, "a part is not as the upload has it", "send that part again")
_FULL = Meaning(NoSpaceError, "its space is used up", "free some space there, or raise the quota")
_BUSY = Meaning(UnavailableError, "the server cannot do it now", "it is worth another try")
_BROKEN = Meaning(UnavailableError, "what arrived is not what was sent", "it is worth another try")
_CHANGED = Meaning(BusyError, "it has changed meanwhile", "")
_SPEECH = Meaning(UnavailableError, "what answers does not speak the protocol of S3", "check endpoint_url")
_GONE_UPLOAD = Meaning(NotFoundError, "there is no such upload in parts", "begin again")

CODES: Mapping[str, Meaning] = {
    "NoSuchKey": _NO_OBJECT,
    "NoSuchVersion": _NO_OBJECT,
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchUpload": _GONE_UPLOAD,
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "AuthFailure"), _BAD_KEY),
    **dict.fromkeys(("InvalidToken", "InvalidClientTokenId", "Unauthorized", "CredentialsNotSupported"), _BAD_KEY),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), _OLD_KEY),
    **dict.fromkeys(
        ("AccessDenied", "AllAccessDisabled", "AccountProblem", "NotSignedUp", "MethodNotAllowed"), _FORBIDDEN
    ),
    **dict.fromkeys(("AccessForbidden", "Forbidden", "InvalidObjectState", "NotAuthorized"), _FORBIDDEN),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"), _CLOCK),
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "IncorrectEndpoint", "InvalidRegion"), _REGION),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"), _REGION),
    "InvalidBucketName": _NAME,
    **dict.fromkeys(("InvalidPart", "InvalidPartOrder", "EntityTooSmall", "EntityTooLarge"), _PARTS),
    **dict.fromkeys(
        ("QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"), _FULL
    ),
    **dict.fromkeys(("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "TooManyRequests"), _BUSY),
    **dict.fromkeys(("Throttling", "ThrottlingException", "RequestLimitExceeded", "OperationAborted"), _BUSY),
    "ConditionalRequestConflict": _BUSY,
    **dict.fromkeys(("BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"), _BROKEN),
    "XAmzContentChecksumMismatch": _BROKEN,
}

STATUSES: Mapping[int, Meaning] = {
    301: _REGION,
    307: _REGION,
    400: _REQUEST,
    401: _BAD_KEY,
    403: _FORBIDDEN,
    404: _NOTHING,
    412: _CHANGED,
    429: _BUSY,
    507: _FULL,
}
"""Of answers whose code is not above: HEAD has none."""

# Classes of botocore's, by name, so that this table needs no library.  A class's own entry comes before its bases'.
CLASSES: Mapping[str, Meaning] = {
    **dict.fromkeys(("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"), _NO_KEY),
    **dict.fromkeys(("ProfileNotFound", "ConfigNotFound", "ConfigParseError", "MetadataRetrievalError"), _NO_KEY),
    **dict.fromkeys(("SSOError", "TokenRetrievalError", "RefreshWithMFAUnsupportedError"), _OLD_KEY),
    **dict.fromkeys(
        ("NoRegionError", "InvalidRegionError"), Meaning(InvalidError, "no valid region is set", _REGION.remedy)
    ),
    "ParamValidationError": _REQUEST,
    "ResponseParserError": _SPEECH,
    **dict.fromkeys(("InvalidS3AddressingStyleError", "InvalidEndpointConfigurationError"), _REQUEST),
    "SSLError": Meaning(
        UnavailableError, "its certificate is not trusted", "name the file of its authority as ca in the provider's URL"
    ),
    "ConnectTimeoutError": Meaning(UnavailableError, "no connection in time", "check endpoint_url and the network"),
    "ReadTimeoutError": Meaning(UnavailableError, "no answer in time", "it is worth another try"),
    "EndpointConnectionError": Meaning(
        UnavailableError, "no connection", "check endpoint_url, and that the server runs"
    ),
    "ProxyConnectionError": Meaning(UnavailableError, "no connection to the proxy", "check HTTP_PROXY and HTTPS_PROXY"),
    "ConnectionClosedError": Meaning(UnavailableError, "the connection broke", "it is worth another try"),
    "TimeoutError": Meaning(UnavailableError, "no answer in time", "it is worth another try"),
}
_NO_HOST = Meaning(UnavailableError, "the name of its host is not known", "check endpoint_url, and the name service")
_OTHER = Meaning(UnavailableError, "the connection broke", "it is worth another try")


class Refused(Exception):
    """An answer that botocore has made no exception of."""

    def __init__(self, response: Mapping[str, Any]) -> None:
        super().__init__(str(response.get("Error", {}).get("Code", "")))
        self.response = response


def _answer(error: BaseException | None, part: str) -> Mapping[str, Any]:
    """A part of what the server answered, as botocore keeps it; empty if there was no answer."""
    response = getattr(error, "response", None)
    found = response.get(part) if isinstance(response, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def status_of(error: BaseException | None) -> int:
    """0 if no server answered."""
    return int(_answer(error, "ResponseMetadata").get("HTTPStatusCode", 0))


def code_of(error: BaseException | None) -> str:
    """The server's code, or its status as text; empty if no server answered."""
    return str(_answer(error, "Error").get("Code", "")) or str(status_of(error) or "")


def attempts_of(error: BaseException | None) -> int:
    """How often the request was sent again before the server answered with this."""
    return int(_answer(error, "ResponseMetadata").get("RetryAttempts", 0))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, and what it came from, libraries' own way of keeping that included."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        inner = getattr(seen, "kwargs", {}).get("error") if hasattr(seen, "kwargs") else None
        seen = inner if isinstance(inner, BaseException) else (seen.__cause__ or seen.__context__)


def meaning(error: BaseException) -> tuple[Meaning, str]:
    """What an error of a client means, and a word of its own to show with it."""
    code = code_of(error)
    if code:
        status = status_of(error)
        found = CODES.get(code)
        if found is None and code.startswith("KMS."):
            found = _KMS
        if found is not None:
            return found, code
        found = STATUSES.get(status, _BUSY if status >= 500 else _REQUEST)
        said = "" if code.isdigit() else str(_answer(error, "Error").get("Message", ""))
        return found, f"{code}: {' '.join(said.split())[:200]}" if said else code
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return _NO_HOST, type(error).__name__
    if any(type(cause).__name__ == "ClientPayloadError" and "redirect" in str(cause) for cause in causes):
        return _REGION, type(error).__name__
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return CLASSES["SSLError"], type(error).__name__
    for kind in type(error).__mro__:
        if kind.__name__ in CLASSES:
            return CLASSES[kind.__name__], type(error).__name__
    return _OTHER, type(error).__name__


def ours(error: BaseException, what: str, place: str) -> ArtfsError:
    """`what`: what was wanted, like `object a/b`; `place`: `bucket b at https://…`."""
    found, own = meaning(error)
    region = _answer(error, "Error").get("Region", "") if found is _REGION else ""
    remedy = f"set region={region} in the provider's URL" if region else found.remedy
    return found.kind(f"{what}, {place}: {found.reason} ({own}){'; ' if remedy else ''}{remedy}")


@contextmanager
def translated(what: str, place: str) -> Iterator[None]:
    """Errors of the client, of the network and of a deadline become ours; those of a programmer do not."""
    try:
        yield
    except ArtfsError:
        raise
    except Exception as error:
        if not isinstance(error, Refused) and not _is_clients(error):
            raise
        raise ours(error, what, place) from error


def _is_clients(error: Exception) -> bool:
    if isinstance(error, (OSError, TimeoutError)):
        return True
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(modules & {"botocore", "aiobotocore", "aiohttp", "boto3", "aioboto3"})
