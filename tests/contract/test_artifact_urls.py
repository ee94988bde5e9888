"""URLs of artifacts and uploads through URLs, as HTTP clients use them."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from artfs import (
    AccessDeniedError,
    ArtifactExpiredError,
    ArtifactNotFoundError,
    ArtifactStore,
    ArtifactStoreError,
    MultipartUploadCompleteRequest,
    MultipartUploadInitRequest,
    MultipartUploadPart,
    StorageScope,
)
from tests.contract.api import a_store, everywhere
from tests.contract.loops import on_both_loops
from tests.http import fetch

MIB5 = 5 << 20


@on_both_loops
@everywhere
async def test_a_url_gives_the_bytes(store: ArtifactStore) -> None:
    made = await store.store(b"hello", session_id="s", mime="text/plain", filename="docs/a b.txt")
    for url in (
        await store.presign(made, expires=60),
        await store.presign_short(made),
        await store.presign_medium(made),
        await store.presign_long(made),
    ):
        answer = await fetch(url)
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"hello", "text/plain")
        assert 'filename="a b.txt"' in answer.headers["content-disposition"]
    await store.update_file(made, b"later")
    assert (await fetch(url)).body == b"hello"
    assert (await fetch(await store.presign(made))).body == b"later"
    await store.delete(made)
    assert (await fetch(url)).status == 404
    with pytest.raises(ArtifactNotFoundError):
        await store.presign(made)
    for expires in (0, -1, 8 * 24 * 3600):
        other = await store.store(b"x", session_id="s")
        with pytest.raises(ArtifactStoreError):
            await store.presign(other, expires=expires)


@on_both_loops
@everywhere
async def test_an_upload_is_registered(store: ArtifactStore) -> None:
    url, id = await store.presign_upload(session_id="s", filename="photo.jpg", mime_type="image/jpeg")
    assert not await store.exists(id)
    with pytest.raises(ArtifactNotFoundError):
        await store.register_uploaded_artifact(id, mime="image/jpeg", summary="one")
    assert (await fetch(url, "PUT", b"jpeg", {"Content-Type": "text/plain"})).status == 403
    answer = await fetch(url, "PUT", b"jpeg", {"Content-Type": "image/jpeg"})
    assert answer.status == 200
    assert "etag" in answer.headers["access-control-expose-headers"].lower()
    assert not await store.exists(id)
    assert await store.list_by_session("s") == []
    assert await store.register_uploaded_artifact(id, summary="Profile", meta={"k": 1}, ttl=60) is True
    found = await store.metadata(id)
    assert (found.bytes, found.mime, found.filename) == (4, "image/jpeg", "photo.jpg")
    assert (found.summary, found.meta, found.ttl, found.session_id) == ("Profile", {"k": 1}, 60, "s")
    assert found.uploaded_via_presigned is True
    assert await store.retrieve(id) == b"jpeg"
    assert (await fetch(url, "PUT", b"more", {"Content-Type": "image/jpeg"})).status in (403, 404, 410)
    assert await store.retrieve(id) == b"jpeg"
    with pytest.raises((ArtifactNotFoundError, ArtifactExpiredError)):
        await store.register_uploaded_artifact(id, mime="image/jpeg", summary="again")


@on_both_loops
@everywhere
async def test_an_upload_that_registers_itself(store: ArtifactStore) -> None:
    url, id = await store.presign_upload_and_register(
        mime="text/plain", summary="it", filename="a.txt", session_id="s", meta={"k": 1}
    )
    assert not await store.exists(id)
    with pytest.raises(ArtifactNotFoundError):
        await store.retrieve(id)
    assert (await fetch(url, "PUT", b"text", {"Content-Type": "text/plain"})).status == 200
    assert [one.artifact_id for one in await store.list_by_session("s")] == [id]
    found = await store.metadata(id)
    assert (found.summary, found.meta, found.bytes, found.ttl) == ("it", {"k": 1}, 4, 900)
    assert await store.retrieve(id) == b"text"


@on_both_loops
@everywhere
async def test_an_upload_in_parts(store: ArtifactStore) -> None:
    begun = await store.initiate_multipart_upload(
        MultipartUploadInitRequest(
            filename="a.mp4",
            mime_type="video/mp4",
            user_id="alice",
            scope=StorageScope.USER,
            ttl=3600,
            meta={"project": "Q4"},
        )
    )
    upload, id = begun["upload_id"], begun.artifact_id
    assert begun.key == f"grid/{store.sandbox_id}/users/alice/{id}"
    for number in (0, 10_001, True, "1"):
        with pytest.raises(ValueError, match="Part number must be between 1 and 10,000"):
            await store.get_part_upload_url(upload, number)  # type: ignore[arg-type]
    datas = {1: b"a" * MIB5, 2: b"b" * MIB5, 3: b"end"}
    parts = []
    for number, data in datas.items():
        url = await store.get_part_upload_url(upload_id=upload, part_number=number, expires=60)
        await fetch(url, "PUT", b"to be sent again")
        answer = await fetch(url, "PUT", data)
        tag = answer.headers["etag"]
        parts.append(MultipartUploadPart(PartNumber=number, ETag=tag if number == 1 else tag.strip('"')))
    for wrong in (
        [MultipartUploadPart(PartNumber=1, ETag="wrong"), *parts[1:]],
        [*parts, MultipartUploadPart(PartNumber=4, ETag="x")],
        [parts[0], parts[2], MultipartUploadPart(PartNumber=3, ETag=parts[2].ETag)],
    ):
        with pytest.raises(ArtifactStoreError):
            await store.complete_multipart_upload(MultipartUploadCompleteRequest(upload_id=upload, parts=wrong))
        assert not await store.exists(id)
    done = await store.complete_multipart_upload({"upload_id": upload, "parts": parts, "summary": "4K"})
    assert done == id
    found = await store.metadata(id)
    assert (found.bytes, found.scope, found.owner_id) == (2 * MIB5 + 3, "user", "alice")
    assert (found.summary, found.meta, found.ttl, found.mime) == ("4K", {"project": "Q4"}, 3600, "video/mp4")
    assert await store.retrieve(id, user_id="alice") == b"".join(datas.values())
    with pytest.raises(ArtifactNotFoundError, match="it was registered already"):
        await store.get_part_upload_url(upload, 1)


@on_both_loops
@everywhere
async def test_aborted_and_small_parts(store: ArtifactStore) -> None:
    begun = await store.initiate_multipart_upload({"filename": "a", "mime_type": "a/b", "session_id": "s"})
    url = await store.get_part_upload_url(begun.upload_id, 1)
    tags = []
    for number in (1, 2):
        answer = await fetch(await store.get_part_upload_url(begun.upload_id, number), "PUT", b"small")
        tags.append({"PartNumber": number, "ETag": answer.headers["etag"]})
    with pytest.raises(ArtifactStoreError, match="5 MiB"):
        await store.complete_multipart_upload({"upload_id": begun.upload_id, "parts": tags})
    assert await store.abort_multipart_upload(begun.upload_id) is True
    assert (await fetch(url, "PUT", b"x")).status in (403, 404, 410)
    with pytest.raises((ArtifactNotFoundError, ArtifactExpiredError)):
        await store.complete_multipart_upload({"upload_id": begun.upload_id, "parts": tags})
    with pytest.raises(ArtifactNotFoundError, match="it was aborted already"):
        await store.get_part_upload_url(begun.upload_id, 1)
    for nothing in (begun.upload_id, "nosuch"):
        assert await store.abort_multipart_upload(nothing) is True
    for bad in ({"upload_id": "x", "parts": []}, {"parts": tags}, 3):
        with pytest.raises(ArtifactStoreError):
            await store.complete_multipart_upload(bad)  # type: ignore[arg-type]
    assert await store.search() == []


@on_both_loops
async def test_parts_that_never_came(tmp_path: Path) -> None:
    parts = [{"PartNumber": 1, "ETag": "etag-part-1"}]
    async with a_store("memory", tmp_path) as store:
        begun = await store.initiate_multipart_upload({"filename": "a", "mime_type": "a/b", "session_id": "s"})
        id = await store.complete_multipart_upload({"upload_id": begun.upload_id, "parts": parts})
        found = await store.metadata(id)
        assert (id, found.bytes, found["incomplete"]) == (begun.artifact_id, 0, True)
        await store.update_file(id, b"now")
        assert "incomplete" not in await store.metadata(id)
    async with a_store("root", tmp_path) as store:
        begun = await store.initiate_multipart_upload({"filename": "a", "mime_type": "a/b", "session_id": "s"})
        with pytest.raises(ArtifactStoreError, match="has not come"):
            await store.complete_multipart_upload({"upload_id": begun.upload_id, "parts": parts})
        assert not await store.exists(begun.artifact_id)


@on_both_loops
@everywhere
async def test_uploads_are_checked(store: ArtifactStore) -> None:
    alice, bob = store.as_principal(user_id="alice"), store.as_principal(user_id="bob")
    _, id = await alice.presign_upload(scope="user")
    begun = await alice.initiate_multipart_upload({"filename": "a", "mime_type": "a/b", "scope": "user"})
    for call in (
        bob.register_uploaded_artifact(id, summary="x"),
        bob.get_part_upload_url(begun.upload_id, 1),
        bob.abort_multipart_upload(begun.upload_id),
        store.get_part_upload_url(begun.upload_id, 1, user_id="bob"),
        bob.presign_upload(scope="user", user_id="alice"),
    ):
        with pytest.raises(AccessDeniedError):
            await call
    assert await alice.abort_multipart_upload(begun.upload_id)


@on_both_loops
async def test_uploads_outlive_the_process(tmp_path: Path) -> None:
    async with a_store("root", tmp_path) as store:
        url, id = await store.presign_upload_and_register(mime="a/b", summary="s", user_id="alice", scope="user")
        begun = await store.initiate_multipart_upload({"filename": "a", "mime_type": "a/b", "session_id": "s"})
        part = await fetch(await store.get_part_upload_url(begun.upload_id, 1), "PUT", b"part")
        assert (await fetch(url, "PUT", b"x", {"Content-Type": "a/b"})).status == 200
        assert await store.exists(id)
    async with a_store("root", tmp_path) as store:
        assert await store.retrieve(id) == b"x"
        with anyio.fail_after(20):
            made = await store.complete_multipart_upload(
                {"upload_id": begun.upload_id, "parts": [{"PartNumber": 1, "ETag": part.headers["etag"]}]}
            )
        assert await store.retrieve(made) == b"part"
