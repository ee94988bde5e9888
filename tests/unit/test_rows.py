"""Rows: what is packed is read back, what is damaged is refused, keys sort as their numbers do."""

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artfs.blocks import Block, Chunk, Source
from artfs.errors import DamagedError
from artfs.types import NEVER
from artfs.volume.node import Node
from artfs.volume.rows import (
    BLOCK_KEY,
    CHUNK,
    DENTRY,
    HEAD,
    INLINE,
    INODE,
    KID_AT,
    NS,
    PIECE,
    STORED,
    U32,
    ZERO,
    Head,
    allocated,
    number,
    pack_block,
    unpack_block,
)

U32S, U64S = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
CHUNKS = st.builds(Chunk, U64S, U64S, st.just(5000), st.binary(min_size=16, max_size=16))
TIMES = st.integers(-(2**33) * NS, 2**34 * NS)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    block: Block = []
    at = 0
    for _ in range(draw(st.integers(0, 8))):
        start = at + draw(st.integers(0, 50))
        length = draw(st.integers(1, 300))
        kind = draw(st.sampled_from([INLINE, STORED, ZERO]))
        source: Source = None
        offset = 0
        if kind == INLINE:
            source = draw(st.binary(min_size=length + 20, max_size=length + 20))
            offset = draw(st.integers(0, 20))
        elif kind == STORED:
            source = draw(CHUNKS)
            offset = draw(st.integers(0, 4000))
        block.append((start, start + length, source, offset))
        at = start + length
    return block


def _plain(block: Block) -> list[tuple[Any, ...]]:
    """Comparable: inline bytes cut to what the extent names, a chunk as its fields."""
    found: list[tuple[Any, ...]] = []
    for start, end, source, offset in block:
        if isinstance(source, Chunk):
            found.append((start, end, source.object, source.offset, source.length, source.hash, offset))
        else:
            found.append((start, end, None if source is None else source[offset : offset + end - start]))
    return found


@given(blocks())
def test_blocks_come_back(block: Block) -> None:
    value = pack_block(block)
    found = unpack_block(value)
    assert _plain(found) == _plain(block)
    assert allocated(value) == sum(end - start for start, end, _, _ in block)
    assert not any(source.verified for _, _, source, _ in found if isinstance(source, Chunk))


@given(blocks(), st.data())
def test_a_block_that_is_cut_short_is_refused_or_ends_between_extents(block: Block, data: st.DataObject) -> None:
    value = pack_block(block)
    cut = data.draw(st.integers(0, max(len(value) - 1, 0)))
    ends = {len(pack_block(block[:i])): i for i in range(len(block) + 1)}
    if cut in ends:
        assert _plain(unpack_block(value[:cut])) == _plain(block[: ends[cut]])
    else:
        with pytest.raises(DamagedError):
            unpack_block(value[:cut])


@given(st.binary(max_size=120))
def test_any_bytes_are_a_block_or_damaged(value: bytes) -> None:
    try:
        block = unpack_block(value)
    except DamagedError:
        return
    assert pack_block(block) == value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (PIECE.pack(10, 10, ZERO), "order"),
        (PIECE.pack(10, 5, ZERO), "order"),
        (PIECE.pack(0, 10, ZERO) + PIECE.pack(9, 20, ZERO), "order"),
        (PIECE.pack(0, 10, ZERO) * 2, "order"),
        (PIECE.pack(0, 10, INLINE) + b"123456789", "cut short"),
        (PIECE.pack(0, 10, STORED) + CHUNK.pack(1, 0, 9, bytes(16), 0), "past its chunk"),
        (PIECE.pack(0, 10, STORED) + CHUNK.pack(1, 0, 19, bytes(16), 10), "past its chunk"),
        (PIECE.pack(0, 10, STORED) + CHUNK.pack(1, 0, 10, bytes(16), 0)[:-1], "cannot be read"),
        (PIECE.pack(0, 10, 3), "unknown kind 3"),
        (PIECE.pack(0, 10, ZERO)[:-1], "cannot be read"),
    ],
)
def test_damage_is_named_with_its_remedy(value: bytes, says: str) -> None:
    with pytest.raises(DamagedError, match=f"{says}.*artfs fsck"):
        unpack_block(value)


def test_no_row_is_no_allocation() -> None:
    assert allocated(None) == allocated(b"") == 0


def _node(number: int = 7) -> Node:
    tree: Any = SimpleNamespace(number=number)
    return Node(tree, 9, number << 32 | 9, 0o100644, 1, 2, 0, 0)


@given(
    st.tuples(*[U32S] * 5),
    st.tuples(U64S, U64S, U64S),
    st.tuples(TIMES, TIMES, TIMES),
    st.integers(0, 2**16 - 1),
    U32S,
    st.binary(max_size=50),
)
def test_inodes_come_back(
    small: tuple[int, ...],
    large: tuple[int, ...],
    times: tuple[int, ...],
    xattrs: int,
    kid: int,
    target: bytes,
) -> None:
    node = _node()
    node.mode, node.nlink, node.uid, node.gid, node.rdev = small
    node.parent, node.size, node.allocated = large
    node.atime, node.mtime, node.ctime = times
    node.xattrs, node.num, node.target = xattrs, 7 << 32 | kid, target
    value = node.pack()
    assert U32.unpack_from(value, KID_AT) == (kid,)
    other = _node()
    other.unpack(value)
    assert other.pack() == value
    for name in ("mode", "nlink", "uid", "gid", "rdev", "parent", "size", "allocated", "xattrs", "num", "target"):
        assert getattr(other, name) == getattr(node, name), name
    assert (other.atime, other.mtime, other.ctime) == times


@pytest.mark.parametrize("time", [0, -1, -NS, -NS - 1, NS - 1, -2208988800 * NS + 5, 13569465600 * NS + 999_999_999])
def test_nanoseconds_are_kept_within_a_second(time: int) -> None:
    """Before 1970 and in the year 2400: the seconds are rounded down, so that the rest is never negative."""
    node = _node()
    node.atime = time
    seconds, rest = INODE.unpack(node.pack())[9:11]
    assert 0 <= rest < NS
    assert seconds * NS + rest == time


def test_an_inode_that_changes_its_type_keeps_its_names_only_as_a_directory() -> None:
    folder = _node()
    folder.mode = 0o040755
    file = _node()
    seen = _node()
    seen.unpack(folder.pack())
    assert seen.kids == {}
    seen.unpack(file.pack())
    assert seen.kids is None


@given(st.tuples(*[U64S] * 5), st.integers(-(2**63), 2**63 - 1))
def test_heads_come_back(counters: tuple[int, ...], inodes: int) -> None:
    head = Head(*counters, inodes)  # type: ignore[call-arg]
    assert Head.unpack(head.pack()) == head
    assert len(head.pack()) == HEAD.size == 48


@pytest.mark.parametrize("length", [0, HEAD.size - 1, HEAD.size + 1])
def test_a_head_of_another_length_is_damage(length: int) -> None:
    with pytest.raises(DamagedError, match="artfs fsck"):
        Head.unpack(bytes(length))


@given(st.lists(U64S, min_size=2, max_size=20))
def test_numbers_sort_as_their_bytes(numbers: list[int]) -> None:
    assert sorted(numbers) == [int.from_bytes(key, "big") for key in sorted(map(number, numbers))]


@given(st.lists(st.tuples(U64S, U32S), min_size=2, max_size=20))
def test_keys_of_blocks_sort_by_inode_then_by_index(places: list[tuple[int, int]]) -> None:
    keys = {b"B" + number(ino) + struct.pack(">I", index): (ino, index) for ino, index in places}
    assert [keys[key] for key in sorted(keys)] == sorted(set(places))
    for key, place in keys.items():
        assert BLOCK_KEY.unpack_from(key, 1) == place


def test_versioned_kinds_sort_before_plain_ones() -> None:
    assert sorted(b"IDBXibxh") == sorted(b"IDBX") + sorted(b"ibxh")
    assert max(b"IDBX") < 0x60 <= min(b"ibxh")


def test_sizes_are_those_of_the_format() -> None:
    """docs/format.md: what changes here makes old stores unreadable."""
    assert (INODE.size, DENTRY.size, PIECE.size, CHUNK.size) == (86, 17, 9, 40)
    assert NEVER == 2**63 - 1
