"""Models of the Python API: read by attribute and by key, checked where they are made; access from them alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from artfs import models, types
from artfs.access_control import build_context, can_modify, check_access
from artfs.exceptions import AccessDeniedError
from artfs.models import (
    ArtifactMetadata,
    BatchStoreItem,
    GridKeyComponents,
    MultipartUploadCompleteRequest,
    MultipartUploadInitRequest,
    MultipartUploadPart,
    StreamDownloadRequest,
    StreamUploadRequest,
)
from artfs.sessions import SessionMetadata, SessionStatus
from artfs.types import OperationStatus, ProviderStatus, responses
from artfs.types.responses import Keyed

KEYED = sorted(
    {
        value
        for module in (responses, models)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Keyed) and not value.__name__.startswith("_")
    }
    - {Keyed},
    key=lambda model: model.__name__,
)
SAMPLES: dict[str, Any] = {
    "status": "ok", "overall": "error", "storage": {"status": "ok", "provider": "disk"},
    "session": {"status": "error", "provider": "redis"}, "scope": "user", "type": "blob", "bytes": 1, "ttl_seconds": 0,
    "PartNumber": 1, "artifact_ids": ["a", None], "session_ttl_hours": 24, "max_retries": 3, "expires_in": 3600,
    "total": 2, "successful": 1, "failed": 1,
}  # fmt: skip


def sample(model: type[BaseModel], **fields: Any) -> Any:
    """One with its required fields alone."""
    required = {name: SAMPLES.get(name, "x") for name, field in model.model_fields.items() if field.is_required()}
    return model(**{**required, **fields})


@pytest.mark.parametrize("model", KEYED)
def test_attributes_and_keys_agree(model: type[Keyed]) -> None:
    made = sample(model)
    names = {*model.model_fields, *model.model_computed_fields}
    assert set(made.keys()) == names == set(dict(made)) == set({**made})
    for name in names:
        assert name in made
        assert made[name] == made.get(name) == getattr(made, name) == dict(made.items())[name]
    assert list(made.values()) == [made[name] for name in made.keys()]  # noqa: SIM118  # a model iterates over pairs
    assert len(made) == len(names)
    assert bool(made)
    assert made.get("nosuch", 5) == 5
    assert "nosuch" not in made
    with pytest.raises(KeyError):
        made["nosuch"]
    assert model.model_validate_json(made.model_dump_json(exclude=set(model.model_computed_fields))) == made
    json.dumps(made.model_dump())


def test_all_responses_are_keyed() -> None:
    assert {model.__name__ for model in KEYED} >= types.RESPONSES
    assert {name for name, value in vars(responses).items() if isinstance(value, type)} >= types.RESPONSES


def test_added_fields_are_keys_too() -> None:
    status = ProviderStatus(status=OperationStatus.OK, provider="disk", free=5)  # type: ignore[call-arg]
    assert (status["free"], status.get("free"), "free" in status) == (5, 5, True)
    assert f"Storage: {status['status']}" == "Storage: ok"


def test_two_names_for_one_thing() -> None:
    info = types.SessionInfo(session_id="x", sandbox_id="web", custom_metadata={"a": 1})  # type: ignore[call-arg]
    assert info.metadata == info["metadata"] == info.custom_metadata == info["custom_metadata"] == {"a": 1}
    made = types.CheckpointInfo(checkpoint_id="v1", workspace_id="ns-1", created_at="now")
    assert made["namespace_id"] == made.workspace_id == "ns-1"
    assert made.description == ""
    other = types.CheckpointInfo(checkpoint_id="v1", namespace_id="ns-1", created_at="now")  # type: ignore[call-arg]
    assert other == made


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ArtifactMetadata, {"bytes": -1}),
        (ArtifactMetadata, {"ttl": 0}),
        (GridKeyComponents, {"sandbox_id": "a/b"}),
        (GridKeyComponents, {"artifact_id": ""}),
        (MultipartUploadPart, {"PartNumber": 0}),
        (MultipartUploadPart, {"PartNumber": 10_001}),
        (MultipartUploadPart, {"ETag": ""}),
        (MultipartUploadCompleteRequest, {"parts": []}),
        (MultipartUploadInitRequest, {"filename": ""}),
        (MultipartUploadInitRequest, {"filename": "x", "ttl": -1}),
        (MultipartUploadInitRequest, {"filename": "x", "scope": "everyone"}),
        (MultipartUploadInitRequest, {"filename": "x", "nosuch": 1}),
        (StreamUploadRequest, {"data_stream": b"x"}),
        (StreamUploadRequest, {"data_stream": 5}),
        (StreamUploadRequest, {"data_stream": iter(()), "chunk_size": 0}),
        (StreamUploadRequest, {"data_stream": iter(()), "content_length": -1}),
        (StreamDownloadRequest, {"artifact_id": ""}),
        (BatchStoreItem, {"data": None}),
        (BatchStoreItem, {"data": b"x", "mime": ""}),
    ],
)
def test_what_is_refused(model: type[BaseModel], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        sample(
            model, **{"parts": [{"PartNumber": 1, "ETag": "x"}]} | fields if "parts" in model.model_fields else fields
        )


def test_numbers_of_parts() -> None:
    with pytest.raises(ValidationError, match="Part number must be between 1 and 10,000"):
        MultipartUploadPart(PartNumber=0, ETag="x")
    request = MultipartUploadCompleteRequest.model_validate(
        {"upload_id": "u", "parts": [{"PartNumber": 10_000, "ETag": '"x"'}]}
    )
    assert request.parts == [MultipartUploadPart(PartNumber=10_000, ETag='"x"')]


@pytest.mark.parametrize("model", [MultipartUploadInitRequest, StreamUploadRequest])
def test_time_to_live_left_out(model: Any) -> None:
    given: dict[str, Any] = {"filename": "x", "data_stream": iter(())}
    fields = {name: value for name, value in given.items() if name in model.model_fields}
    assert [model(**fields, scope=scope).ttl for scope in ("session", "user", "sandbox")] == [900, None, None]
    assert [model(**fields, scope=scope, ttl=5).ttl for scope in ("session", "user")] == [5, 5]
    assert model(**fields, ttl=None).ttl is None


async def test_a_stream_stays_the_caller_s() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    stream = chunks()
    request = StreamUploadRequest(data_stream=stream, mime="text/plain", summary="s", user_id="ann")
    assert request.data_stream is stream
    assert [chunk async for chunk in request.data_stream] == [b"x"]
    assert BatchStoreItem(data=b"", summary="").data == b""
    with pytest.raises(ValidationError, match="summary"):
        BatchStoreItem.model_validate({"data": b"x"})


def test_session_metadata() -> None:
    made = SessionMetadata(session_id="x", sandbox_id="web")
    assert made.created_at == made.last_accessed
    assert not made.is_expired()
    assert SessionMetadata.from_dict(made.to_dict()) == made
    assert SessionMetadata(session_id="x", sandbox_id="web", expires_at="2023-11-14T22:13:20Z").is_expired()
    assert not SessionMetadata(session_id="x", sandbox_id="web", expires_at="2223-11-14T22:13:20.5Z").is_expired()
    before = made.last_accessed
    made.last_accessed = "2023-11-14T22:13:20Z"
    made.touch()
    assert made.last_accessed >= (before or "")
    made.status = SessionStatus.TERMINATED
    assert made["status"] == "terminated"
    with pytest.raises(ValidationError):
        SessionMetadata(session_id="", sandbox_id="web")
    with pytest.raises(ValidationError):
        made.status = "odd"  # type: ignore[assignment]


# access
def artifact(scope: str, owner: str | None) -> ArtifactMetadata:
    made: ArtifactMetadata = sample(
        ArtifactMetadata, scope=scope, owner_id=owner, session_id="sess-s1", sandbox_id="web"
    )
    return made


ARTIFACTS = [("session", None), ("session", "ann"), ("user", "ann"), ("sandbox", None)]
CONTEXTS: list[tuple[dict[str, Any], str]] = [
    # what each may do with each artifact: nothing, read, write
    ({}, "---r"),
    ({"session_id": "sess-s1"}, "ww-r"),
    ({"session_id": "s1"}, "ww-r"),
    ({"session_id": "s2"}, "---r"),
    ({"user_id": "ann"}, "-wwr"),
    ({"user_id": "bob"}, "---r"),
    ({"user_id": "ann", "session_id": "s2"}, "--wr"),
    ({"user_id": "bob", "session_id": "s1"}, "ww-r"),
    ({"user_id": "", "session_id": ""}, "---r"),
    ({"admin": True}, "wwww"),
    ({"user_id": "ann", "session_id": "s1", "sandbox_id": "other"}, "----"),
    ({"admin": True, "sandbox_id": "other"}, "----"),
    ({"session_id": "../s1"}, "---r"),
]


@pytest.mark.parametrize(("context", "rights"), CONTEXTS)
def test_access(context: dict[str, Any], rights: str) -> None:
    who = build_context(**{"sandbox_id": "web", **context})
    for (scope, owner), right in zip(ARTIFACTS, rights, strict=True):
        made = artifact(scope, owner)
        assert can_modify(made, who) == (right == "w")
        if right == "-":
            with pytest.raises(AccessDeniedError, match="Access denied"):
                check_access(made, who)
        else:
            check_access(made, who)


def test_an_artifact_of_nobody() -> None:
    with pytest.raises(AccessDeniedError):
        check_access(artifact("user", None), build_context(sandbox_id="web", user_id="ann"))
