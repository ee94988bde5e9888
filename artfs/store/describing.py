"""A namespace as JSON, for the command line and mounts."""

from __future__ import annotations

from typing import Any

from artfs.store.store import Store
from artfs.volume.catalogue import Namespace
from artfs.volume.postings import OWN


def describe(store: Store, namespace: Namespace) -> dict[str, Any]:
    """The namespace as JSON, as `artfs ns info` and the mount show it.  `about`: what the Python API
    knows of it."""
    tree = store.shard.glance(namespace)
    return {
        "id": namespace.id,
        "type": str(namespace.type),
        "grid_path": namespace.grid_path,
        "sandbox": namespace.sandbox,
        "scope": str(namespace.scope),
        "owner": namespace.owner,
        "name": namespace.name,
        "created": namespace.created,
        "expires": namespace.expires,
        "bytes": tree.used_bytes,
        "inodes": tree.used_inodes,
        "checkpoints": len([c for c in tree.checkpoints if not c.name.startswith("~")]),
        "block_size": namespace.block_size,
        "metadata": {key: value for key, value in namespace.metadata.items() if key != OWN},
        "about": namespace.metadata.get(OWN, {}),
        "provider": namespace.provider,
        "codec": namespace.codec,
        "root": str(store.root) if store.root else None,
    }
