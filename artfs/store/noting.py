"""What a BLOB's document says of its bytes, kept true when they change in other ways than through the API.

Listings go by the document, so that they open no tree.  It is looked at when a commit takes changes of a BLOB, and with
that commit it is put right; and before a tree is let go.  While a tree is open, whoever describes it looks at the file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from artfs.errors import ArtfsError
from artfs.volume.postings import OWN
from artfs.volume.tree import BLOB_DATA, Tree
from artfs.volume.waiting import MustWait

if TYPE_CHECKING:
    from artfs.store.store import Store


def note(store: Store, tree: Tree) -> None:
    namespace = store.catalogue.by_serial.get(tree.serial)
    own = None if namespace is None else namespace.metadata.get(OWN)
    if namespace is None or not isinstance(own, dict) or namespace.trashed is not None or not tree.blob:
        return
    try:
        node = tree.lookup(tree.root(), BLOB_DATA)
    except (ArtfsError, MustWait):  # its rows are being restored, or cannot be read: it is looked at again
        return
    if node is None or (own.get("bytes") == node.size and own.get("mtime") == node.mtime):
        return
    seen = {key: value for key, value in own.items() if key != "sha256"}
    seen["bytes"], seen["mtime"] = node.size, node.mtime
    store.catalogue.put(replace(namespace, metadata={**namespace.metadata, OWN: seen}))
