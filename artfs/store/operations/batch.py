"""Many artifacts at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from artfs.exceptions import ArtifactStoreError
from artfs.models import BatchStoreItem
from artfs.store.operations.making import LEFT_OUT, check_data, digest, words
from artfs.store.operations.streams import LARGE, StreamOperations
from artfs.store.public_errors import InvalidArgumentError
from artfs.types import StorageScope
from artfs.volume.trees import SMALL

log = logging.getLogger(__name__)

ITEMS = 1000
"""Of one call, at most."""
NAMES = BatchStoreItem.model_fields.keys()


class BatchOperations(StreamOperations):
    """Many artifacts in few calls; each is stored, or fails, by itself."""

    async def store_batch(
        self,
        items: Sequence[BatchStoreItem | Mapping[str, Any]],
        session_id: str | None = None,
        ttl: float | None = LEFT_OUT,
        *,
        user_id: str | None = None,
        scope: StorageScope | str = StorageScope.SESSION,
    ) -> list[str | None]:
        """The id of each, in their order; None for one that could not be stored, and a log message that says why.
        An item has `data`, and may have mime, summary, meta and filename.  Errors: as `store`, where nothing can be
        stored at all."""
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Sequence):
            raise InvalidArgumentError(f"items must be a list of items to store, not {type(items).__name__}")
        ids: list[str | None] = [None] * len(items)
        common = self._described(mime=None, summary="", filename=None, meta=None, ttl=ttl, scope=scope, user_id=user_id)
        prepared: list[tuple[int, dict[str, Any], bytes]] = []
        for index, item in enumerate(items):
            try:
                prepared.append((index, *self._item(index, item, common["own"]["provider"])))
            except (ArtifactStoreError, ValueError, TypeError) as error:
                _failed(index, error)
        shared = {name: common[name] for name in ("ttl", "scope", "provider")}
        for group in _groups(prepared):
            if len(group) == 1 and len(group[0][2]) > SMALL:
                index, item, data = group[0]
                try:
                    arguments = {**shared, "own": item["own"], "meta": item["meta"]}
                    ids[index] = await self._store_large(data, session_id, user_id, arguments)
                except ArtifactStoreError as error:
                    _failed(index, error)
                continue
            done = await self._made(
                "api_artifact_batch",
                items=[item for _, item, _ in group],
                data=b"".join([data for _, _, data in group]),
                session_id=session_id,
                user_id=user_id,
                **shared,
            )
            for (index, _, _), result in zip(group, done, strict=True):
                if "id" in result:
                    ids[index] = result["id"]
                else:
                    _failed(index, result["error"])
        return ids

    def _item(self, index: int, item: BatchStoreItem | Mapping[str, Any], kind: str) -> tuple[dict[str, Any], bytes]:
        if not isinstance(item, BatchStoreItem | Mapping):
            raise InvalidArgumentError(
                f"an item of a batch is a BatchStoreItem or a mapping, not {type(item).__name__}"
            )
        given = item.model_dump() if isinstance(item, BatchStoreItem) else dict(item)
        data = check_data(given.pop("data", None))
        unknown = given.keys() - NAMES
        if unknown:
            raise InvalidArgumentError(f"an item of a batch has no {', '.join(sorted(unknown))}")
        own, meta = words(
            kind,
            mime=given.get("mime"),
            summary=given.get("summary") or "",
            filename=given.get("filename"),
            meta=given.get("meta"),
        )
        own["batch_operation"], own["batch_index"] = True, index
        if len(data) <= SMALL:
            own["sha256"] = digest(data)
        return {"own": own, "meta": meta, "size": len(data)}, data


def _groups(
    items: Sequence[tuple[int, dict[str, Any], bytes]],
) -> Iterator[list[tuple[int, dict[str, Any], bytes]]]:
    """What goes in one call each."""
    group: list[tuple[int, dict[str, Any], bytes]] = []
    size = 0
    for item in items:
        length = len(item[2])
        if group and (len(group) >= ITEMS or size + length > LARGE or length > SMALL):
            yield group
            group, size = [], 0
        group.append(item)
        size += length
        if length > SMALL:
            yield group
            group, size = [], 0
    if group:
        yield group


def _failed(index: int, error: object) -> None:
    log.warning("item %d of a batch was not stored: %s", index, error)
