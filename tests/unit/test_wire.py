"""Replies against linux/fuse.h: its structs, written out once more, field by field."""

import ctypes
import os
from ctypes import c_char, c_int64, c_uint32, c_uint64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artfs.fuse import wire
from artfs.volume.node import Node
from artfs.volume.rows import NS


class Attr(ctypes.LittleEndianStructure):
    """struct fuse_attr (7.9); seconds are unsigned there, the kernel takes them as signed."""

    _fields_ = (
        *((name, c_uint64) for name in ("ino", "size", "blocks")),
        *((name, c_int64) for name in ("atime", "mtime", "ctime")),
        *((name, c_uint32) for name in ("atimensec", "mtimensec", "ctimensec", "mode", "nlink", "uid", "gid", "rdev")),
        ("blksize", c_uint32),
        ("flags", c_uint32),
    )


class EntryOut(ctypes.LittleEndianStructure):
    _fields_ = (
        *((name, c_uint64) for name in ("nodeid", "generation", "entry_valid", "attr_valid")),
        ("entry_valid_nsec", c_uint32),
        ("attr_valid_nsec", c_uint32),
        ("attr", Attr),
    )


class AttrOut(ctypes.LittleEndianStructure):
    _fields_ = (("attr_valid", c_uint64), ("attr_valid_nsec", c_uint32), ("dummy", c_uint32), ("attr", Attr))


class OpenOut(ctypes.LittleEndianStructure):
    _fields_ = (("fh", c_uint64), ("open_flags", c_uint32), ("backing_id", c_uint32))


class Dirent(ctypes.LittleEndianStructure):
    _fields_ = (("ino", c_uint64), ("off", c_uint64), ("namelen", c_uint32), ("type", c_uint32), ("name", c_char * 0))


class Kstatfs(ctypes.LittleEndianStructure):
    _fields_ = (
        *((name, c_uint64) for name in ("blocks", "bfree", "bavail", "files", "ffree")),
        *((name, c_uint32) for name in ("bsize", "namelen", "frsize", "padding")),
        ("spare", c_uint32 * 6),
    )


@pytest.mark.parametrize(
    ("struct", "size"),
    [(Attr, 88), (EntryOut, 128), (AttrOut, 104), (OpenOut, 16), (Dirent, 24), (Kstatfs, 80)],
)
def test_the_structs_have_the_sizes_of_the_header(struct: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(struct) == size


def test_ours_have_the_same_sizes() -> None:
    assert wire.ENTRY.size == ctypes.sizeof(EntryOut)
    assert EntryOut.attr.offset == wire.ENTRY_HEAD
    assert wire.ATTR_HEAD.size == AttrOut.attr.offset
    assert wire.OPEN.size == ctypes.sizeof(OpenOut)
    assert wire.DIRENT.size == Dirent.name.offset
    assert wire.STATFS.size == ctypes.sizeof(Kstatfs)


def _node(mode: int = 0o100644, **fields: Any) -> Node:
    tree: Any = SimpleNamespace(number=3)
    node = Node(tree, 9, 3 << 32 | 12, mode, 1000, 1001, 0, 0)
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def test_an_entry_is_what_the_kernel_reads() -> None:
    node = _node(nlink=2, rdev=0x801, size=1 << 40, allocated=513, atime=5 * NS + 1, mtime=6 * NS + 2, ctime=7 * NS + 3)
    out = EntryOut.from_buffer_copy(wire.entry(node, 86400))
    assert (out.nodeid, out.generation) == (3 << 32 | 12, 0)
    assert (out.entry_valid, out.attr_valid, out.entry_valid_nsec, out.attr_valid_nsec) == (86400, 86400, 0, 0)
    attr = out.attr
    assert (attr.ino, attr.size, attr.blocks) == (3 << 32 | 12, 1 << 40, 2)
    assert (attr.atime, attr.mtime, attr.ctime) == (5, 6, 7)
    assert (attr.atimensec, attr.mtimensec, attr.ctimensec) == (1, 2, 3)
    assert (attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev) == (0o100644, 2, 1000, 1001, 0x801)
    assert (attr.blksize, attr.flags) == (4096, 0)


@pytest.mark.parametrize("field", ["atime", "mtime", "ctime"])
@pytest.mark.parametrize(
    ("time", "seconds", "rest"),
    [
        (-1, -1, NS - 1),
        (-NS, -1, 0),
        (-2208988800 * NS + 7, -2208988800, 7),  # 1900-01-01
        (13569465600 * NS + 999_999_999, 13569465600, 999_999_999),  # 2400-01-01
    ],
)
def test_times_far_away(field: str, time: int, seconds: int, rest: int) -> None:
    """Each time by itself: those that are equal share one division."""
    attr = EntryOut.from_buffer_copy(wire.entry(_node(**{field: time}), 0)).attr
    for name in ("atime", "mtime", "ctime"):
        wanted = (seconds, rest) if name == field else (0, 0)
        assert (getattr(attr, name), getattr(attr, name + "nsec")) == wanted, name


@pytest.mark.parametrize(("allocated", "blocks"), [(0, 0), (1, 1), (512, 1), (513, 2), (1 << 45, 1 << 36)])
def test_blocks_are_of_512_bytes_and_rounded_up(allocated: int, blocks: int) -> None:
    assert EntryOut.from_buffer_copy(wire.entry(_node(allocated=allocated), 0)).attr.blocks == blocks


def test_a_directory_has_a_size_of_its_own() -> None:
    attr = EntryOut.from_buffer_copy(wire.entry(_node(0o040755, size=0, allocated=0), 0)).attr
    assert (attr.size, attr.blocks) == (4096, 8)


def test_the_attributes_follow_the_head_of_an_entry() -> None:
    """getattr's reply is put together from them."""
    node = _node(size=77, mtime=-1)
    reply = wire.ATTR_HEAD.pack(60, 0, 0) + wire.entry(node, 60)[wire.ENTRY_HEAD :]
    out = AttrOut.from_buffer_copy(reply)
    assert (out.attr_valid, out.attr.ino, out.attr.size, out.attr.mtime) == (60, node.num, 77, -1)


def test_a_name_that_is_not_there_is_a_nodeid_of_zero() -> None:
    out = EntryOut.from_buffer_copy(wire.negative(30))
    assert (out.nodeid, out.entry_valid, out.attr_valid, out.attr.ino) == (0, 30, 0, 0)
    assert len(wire.negative(0)) == 128


def test_open_flags() -> None:
    out = OpenOut.from_buffer_copy(wire.opened(wire.FOPEN_KEEP_CACHE | wire.FOPEN_CACHE_DIR))
    assert (out.fh, out.open_flags, out.backing_id) == (0, 2 | 8, 0)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 255])
def test_directory_entries_are_padded_to_eight(length: int) -> None:
    name = b"\xff" * length
    reply = wire.dirent(2**63 + 5, 2**62, name, 4)
    head = Dirent.from_buffer_copy(reply)
    assert (head.ino, head.off, head.namelen, head.type) == (2**63 + 5, 2**62, length, 4)
    assert len(reply) == (24 + length + 7) // 8 * 8
    assert reply[24:] == name + bytes(len(reply) - 24 - length)


def test_statfs_shows_the_space_of_the_store(tmp_path: Path) -> None:
    out = Kstatfs.from_buffer_copy(wire.statfs(str(tmp_path), 10))
    there = os.statvfs(tmp_path)
    assert (out.blocks, out.bsize, out.frsize, out.namelen) == (there.f_blocks, there.f_frsize, there.f_frsize, 255)
    assert out.bavail <= out.bfree <= out.blocks
    assert out.files - out.ffree == 10
    assert list(out.spare) == [0] * 6
