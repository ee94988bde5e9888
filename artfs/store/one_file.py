"""A store in one sqlite file: found again by the file alone, also under another name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anyio import to_thread

from artfs.errors import NotFoundError
from artfs.meta.sqlite import SqliteEngine
from artfs.objects.opening import parse_url
from artfs.objects.sqlite import SqliteProvider
from artfs.settings import CONFIG_FILE, STORE_FILE
from artfs.volume.recovery import recover

KINDS = ("namespace", "home")
"""Records that name the provider of a namespace."""


async def recovered(root: Path, url: str) -> bool:
    """Whether the file that `url` names holds a store, which `root`, the directory beside it, has now.
    Errors: as `artfs.volume.recovery.recover`."""
    parsed = parse_url(url)
    if parsed.kind != "sqlite" or not parsed.path.exists() or (root / STORE_FILE).exists():
        return False
    provider = SqliteProvider(parsed.path)
    try:
        await recover(provider, url, root)
    except NotFoundError:
        return False
    finally:
        await provider.close()
    (root / CONFIG_FILE).write_text(f"provider = {json.dumps(url)}\n")
    await to_thread.run_sync(_rename, root, url)
    return True


def _rename(root: Path, url: str) -> None:
    """What was in a file that is no more is in this one: it was moved."""
    engine = SqliteEngine(root / "meta.db")
    try:
        changed: dict[tuple[str, str], str | None] = {}
        for kind in KINDS:
            for id, text in engine.records(kind).items():
                document: dict[str, Any] = json.loads(text)
                old = parse_url(document["provider"])
                if old.kind == "sqlite" and document["provider"] != url and not old.path.exists():
                    changed[kind, id] = json.dumps({**document, "provider": url})
        if changed:
            engine.commit([], changed)
    finally:
        engine.close()
