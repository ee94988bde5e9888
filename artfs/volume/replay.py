"""Replay: what a journal holds beyond the engine, done again to the trees."""

from __future__ import annotations

import json
import logging
import os

from xxhash import xxh3_128_digest

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DamagedError
from artfs.meta import Checkpoint
from artfs.types import Epoch, Serial
from artfs.volume import journal as J
from artfs.volume.catalogue import unpack
from artfs.volume.node import Dentry
from artfs.volume.rows import DENTRY, U64
from artfs.volume.tree import Tree
from artfs.volume.trees import Trees

log = logging.getLogger(__name__)


def replay(shard: Trees, journal: J.Journal) -> int:
    """Apply every valid record; records of a namespace that never was, or is gone, are passed over.  Stops at a record
    that names bytes which are not in their object.  Returns the number of records."""
    count = 0
    for serial, body, data in journal.replay():
        entries = list(J.entries(body))
        namespace = shard.catalogue.by_serial.get(Serial(serial))
        if namespace is not None:
            tree = shard.trees.get(Serial(serial)) or shard.open(namespace)
        elif entries and entries[0][0] == b"N":
            tree = shard.found(unpack(body[J.NAMESPACE.size : entries[0][2]]))
        else:
            continue
        if not all(_has_bytes(shard, body, kind, start) for kind, start, _ in entries):
            log.warning("the journal names bytes that did not reach the disk; replay ends after %d records", count)
            break
        rest = data
        for kind, start, end in entries:
            _apply(shard, tree, kind, body, start, end, rest)
            if kind == b"W":
                rest = rest[J.WRITE.unpack_from(body, start)[3] :]
        shard.changed.add(tree)
        count += 1
    return count


def _has_bytes(shard: Trees, body: bytes, kind: bytes, start: int) -> bool:
    if kind != b"B":
        return True
    _, _, _, length, number, offset, digest = J.STORE.unpack_from(body, start)
    try:
        data = os.pread(shard.objects.descriptor(number), length, offset)
        shard.objects.doubt(number)  # a killed process may not have synced what the kernel still gives us
    except (ArtfsError, OSError):
        return False
    return bool(len(data) == length and xxh3_128_digest(data) == digest)


def _apply(shard: Trees, tree: Tree, kind: bytes, body: bytes, at: int, end: int, data: bytes) -> None:
    if kind == b"R":
        _, key_length, length = J.ROW.unpack_from(body, at)
        at += J.ROW.size
        key = body[at : at + key_length]
        value = None if length == J.DELETED else body[at + key_length : at + key_length + length]
        _row(tree, key, value)
    elif kind == b"W":
        _, ino, offset, length = J.WRITE.unpack_from(body, at)
        tree.replay_write(ino, offset, data[:length])
    elif kind == b"B":
        _, ino, offset, length, number, place, digest = J.STORE.unpack_from(body, at)
        tree.replay_store(ino, offset, Chunk(number, place, length, digest, 1))
    elif kind == b"Z":
        _, ino, start, end, what = J.ZERO.unpack_from(body, at)
        tree.replay_zero(ino, start, end, what)
    elif kind == b"C":
        _, source, start, target, offset, length = J.SHARE.unpack_from(body, at)
        tree.replay_share(source, start, target, offset, length)
    elif kind == b"O":
        _, ino, length = J.ORPHAN.unpack_from(body, at)
        at += J.ORPHAN.size
        node = tree.node(ino)
        tree.orphan(node)
        allocated = node.allocated
        node.unpack(body[at : at + length])
        node.allocated = allocated
        tree.rows[node.key] = node.pack()
    elif kind == b"U":
        shard.catalogue.put(unpack(body[at + J.NAMESPACE.size : end]))
    elif kind == b"N":
        pass  # see `replay`
    elif kind == b"K":
        _, length = J.CHECKPOINT.unpack_from(body, at)
        at += J.CHECKPOINT.size
        fields = json.loads(body[at : at + length])
        shard.catalogue.saw_serial(fields["serial"])
        tree.apply_checkpoint(
            Checkpoint(
                **{
                    **fields,
                    "epoch": Epoch(fields["epoch"]),
                    "serial": Serial(fields["serial"]),
                    "usage": tuple(fields["usage"]),
                }
            )
        )
    else:
        raise DamagedError(f"the journal holds an unknown entry {kind!r}")


def _row(tree: Tree, key: bytes, value: bytes | None) -> None:
    """Put a row as it is, and keep the node, the counters and the usage in step with it."""
    kind = key[:1]
    if kind in (b"I", b"i") and value is not None:
        ino = U64.unpack_from(key, 1)[0]
        tree.numbers = max(tree.numbers, ino + 1)
        known = tree.get(key)
        if known is None and kind == b"I" and tree.get(b"i" + key[1:]) is not None:
            tree.adopt(tree.node(ino))
            known = value
        elif known is None:
            if kind == b"I":
                tree.used_inodes += 1
            tree.rows[key] = value
        node = tree.node(ino)
        # Bytes count as they change (see Data): what the row says of allocation is only taken over.
        allocated = node.allocated
        node.unpack(value)
        node.allocated = allocated
        tree.numbers = max(tree.numbers, (node.num & 0xFFFFFFFF) + 1)
        tree.rows[key] = node.pack()
        return
    if kind == b"D":
        folder = tree.nodes.get(U64.unpack_from(key, 1)[0])
        if value is not None:
            tree.cookies = max(tree.cookies, DENTRY.unpack(value)[1])
        if folder is not None and folder.kids is not None:
            folder.order = None
            folder.complete = False
            if value is None:
                folder.kids.pop(key[9:], None)
            else:
                folder.kids[key[9:]] = Dentry(*DENTRY.unpack(value))
    tree.rows[key] = value
