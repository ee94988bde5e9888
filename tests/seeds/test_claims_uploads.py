"""001, URLs, uploads and streams: what the document claims, one claim to a test; as in `test_claims_artifacts`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from artfs import (
    AccessDeniedError,
    ArtifactStore,
    ArtifactStoreError,
    MultipartUploadCompleteRequest,
    MultipartUploadInitRequest,
    MultipartUploadPart,
    StorageScope,
    StreamDownloadRequest,
    StreamUploadRequest,
)
from tests.contract.loops import on_both_loops
from tests.seeds.claims import http, owned, put, store

__all__ = ["owned", "store"]
KIB64 = 65_536


# URLs and uploads
@on_both_loops
async def test_download_urls_work_and_end(store: ArtifactStore) -> None:
    made = await put(store, b"by URL")
    for sign in (store.presign, store.presign_short, store.presign_medium, store.presign_long):
        assert (await http("GET", await sign(made)))[:2] == (200, b"by URL")
    url = await store.presign(made, expires=1)
    await anyio.sleep(1.1)
    assert (await http("GET", url))[0] == 403
    await store.delete(made)


@on_both_loops
async def test_a_client_uploads_by_url(store: ArtifactStore) -> None:
    url, made = await store.presign_upload(session_id="mine", filename="photo.jpg", mime_type="image/jpeg", expires=60)
    with pytest.raises(ArtifactStoreError):
        await store.retrieve(made)
    assert (await http("PUT", url, b"a photo", Content_Type="image/jpeg"))[0] == 200
    await store.register_uploaded_artifact(made, mime="image/jpeg", summary="Profile pic", filename="photo.jpg")
    assert await store.retrieve(made) == b"a photo"
    assert (await store.metadata(made)).bytes == 7
    assert (await http("PUT", url, b"again", Content_Type="image/jpeg"))[0] in (403, 404, 409, 410)
    assert await store.retrieve(made) == b"a photo"


@on_both_loops
async def test_parts_are_put_together(store: ArtifactStore) -> None:
    request = MultipartUploadInitRequest(
        filename="v.mp4", mime_type="video/mp4", user_id="alice", scope=StorageScope.USER
    )
    begun = await store.initiate_multipart_upload(request)
    bodies = [b"a" * (5 << 20), b"b" * 1000]
    parts = []
    for number, body in enumerate(bodies, 1):
        url = await store.get_part_upload_url(upload_id=begun["upload_id"], part_number=number, expires=60)
        status, _, etag = await http("PUT", url, body)
        assert status == 200
        parts.append(MultipartUploadPart(PartNumber=number, ETag=etag))
    complete = MultipartUploadCompleteRequest(upload_id=begun["upload_id"], parts=parts, summary="4K")
    made = await store.complete_multipart_upload(complete)
    assert made == begun["artifact_id"]
    assert await store.retrieve(made, user_id="alice") == b"".join(bodies)
    assert (await store.metadata(made)).bytes == sum(map(len, bodies))


@on_both_loops
async def test_limits_and_end_of_an_upload_in_parts(store: ArtifactStore) -> None:
    request = MultipartUploadInitRequest(filename="v.mp4", mime_type="video/mp4")
    begun = await store.initiate_multipart_upload(request)
    for number in (0, 10_001):
        with pytest.raises(ValueError, match="Part number must be between 1 and 10,000"):
            await store.get_part_upload_url(begun["upload_id"], number)
    url = await store.get_part_upload_url(begun["upload_id"], 1)
    await store.abort_multipart_upload(begun["upload_id"])
    assert (await http("PUT", url, b"late"))[0] in (403, 404, 409, 410)
    with pytest.raises(ArtifactStoreError):
        await store.get_part_upload_url(begun["upload_id"], 1)
    assert not await store.exists(begun["artifact_id"])


# streams
def upload(stream: AsyncIterator[bytes], **more: Any) -> StreamUploadRequest:
    return StreamUploadRequest(data_stream=stream, **{"mime": "video/mp4", "summary": "s", **more})


async def chunks(count: int, failure: Exception | None = None) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number % 251]) * KIB64
    if failure:
        raise failure


@on_both_loops
async def test_streams_report_their_progress(store: ArtifactStore) -> None:
    up: list[tuple[int, int | None]] = []
    down: list[tuple[int, int | None]] = []
    total = 40 * KIB64
    request = upload(
        chunks(40), user_id="alice", content_length=total, progress_callback=lambda d, t: up.append((d, t))
    )
    made = await store.stream_upload(request)

    async def tell(done: int, all: int | None) -> None:
        down.append((done, all))

    wanted = StreamDownloadRequest(artifact_id=made, user_id="alice", progress_callback=tell)
    got = [chunk async for chunk in store.stream_download(wanted)]
    assert b"".join(got) == b"".join([chunk async for chunk in chunks(40)])
    assert max(map(len, got)) <= KIB64
    for calls in (up, down):
        assert calls[-1] == (total, total)
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert len(calls) > 4


@on_both_loops
async def test_a_stream_that_fails_leaves_nothing(store: ArtifactStore) -> None:
    before = len(store.list_namespaces())
    with pytest.raises(ArtifactStoreError):
        await store.stream_upload(upload(chunks(3), session_id="mine", content_length=4 * KIB64))
    with pytest.raises(ArtifactStoreError):
        await store.stream_upload(upload(chunks(3), session_id="mine", content_length=2 * KIB64))
    with pytest.raises(Exception, match="half-way"):
        await store.stream_upload(upload(chunks(3, RuntimeError("half-way")), session_id="mine"))
    assert await store.list_by_session("mine") == []
    assert len(store.list_namespaces()) == before


@on_both_loops
async def test_streams_obey_the_rules_of_access(store: ArtifactStore) -> None:
    made = await store.stream_upload(upload(chunks(1), user_id="alice", scope="user", ttl=None))
    with pytest.raises(AccessDeniedError):
        async for _ in store.stream_download(StreamDownloadRequest(artifact_id=made, user_id="bob")):
            pytest.fail("a chunk came")


@on_both_loops
async def test_streams_at_once(store: ArtifactStore) -> None:
    made: dict[int, str] = {}

    async def one(number: int) -> None:
        made[number] = await store.stream_upload(upload(chunks(number), user_id="alice"))

    async with anyio.create_task_group() as tasks:
        for number in range(1, 6):
            tasks.start_soon(one, number)
    for number, artifact in made.items():
        assert (await store.metadata(artifact)).bytes == number * KIB64
