"""Listings and searches of artifacts: complete, exact, in order, and quick where there are many."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytest

from artfs import ArtifactStore, ArtifactStoreError
from artfs.meta.memory import MemoryEngine
from artfs.store.artifact_search import PAGE, SCAN
from artfs.types import Serial
from artfs.volume.catalogue import Catalogue
from artfs.volume.postings import Posting, Postings
from tests.contract.api import a_store, everywhere
from tests.contract.loops import on_both_loops


def names(found: list[Any]) -> list[str]:
    return [one.filename for one in found]


async def fill(store: ArtifactStore) -> dict[str, str]:
    """File name → id."""
    made = {}
    cases: dict[str, dict[str, Any]] = {
        "docs/a.txt": {"session_id": "s", "meta": {"q": "Q4", "n": 1}},
        "docs/b/c.pdf": {"session_id": "s", "meta": {"q": "Q4", "n": 1.5, "tags": ["x", "y"]}},
        "docs2/d.png": {"session_id": "s", "meta": {"q": "Q1", "n": True}},
        "e.png": {"session_id": "t", "meta": {"q": None}},
        "alice.pdf": {"user_id": "alice", "scope": "user", "meta": {"q": "Q4"}},
        "alice2.txt": {"user_id": "alice", "scope": "user", "meta": {"tags": {"a": [1]}}},
        "bob.pdf": {"user_id": "bob", "scope": "user"},
        "shared.png": {"scope": "sandbox", "meta": {"q": "Q4"}},
        "mine.txt": {"user_id": "alice"},
    }
    for name, arguments in cases.items():
        made[name] = await store.store(b"x", filename=name, **arguments)
    return made


@on_both_loops
@everywhere
async def test_what_is_found(store: ArtifactStore) -> None:
    made = await fill(store)
    everything = list(reversed(made))
    assert names(await store.search()) == everything
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"meta_filter": {"q": "Q4"}}, ["shared.png", "alice.pdf", "docs/b/c.pdf", "docs/a.txt"]),
        ({"meta_filter": {"q": "Q4", "n": 1}}, ["docs/a.txt"]),
        ({"meta_filter": {"n": 1.5}}, ["docs/b/c.pdf"]),
        ({"meta_filter": {"n": True}}, ["docs2/d.png"]),
        ({"meta_filter": {"q": None}}, ["e.png"]),
        ({"meta_filter": {"tags": ["x", "y"]}}, ["docs/b/c.pdf"]),
        ({"meta_filter": {"tags": ["y", "x"]}}, []),
        ({"meta_filter": {"tags": {"a": [1]}}}, ["alice2.txt"]),
        ({"meta_filter": {"nosuch": None}}, []),
        ({"mime_prefix": "image/"}, ["shared.png", "e.png", "docs2/d.png"]),
        ({"mime_prefix": "application/pdf"}, ["bob.pdf", "alice.pdf", "docs/b/c.pdf"]),
        ({"mime_prefix": "video"}, []),
        ({"scope": "sandbox"}, ["shared.png"]),
        ({"scope": "user"}, ["bob.pdf", "alice2.txt", "alice.pdf"]),
        ({"scope": "session"}, []),
        ({"scope": "session", "session_id": "s"}, ["docs2/d.png", "docs/b/c.pdf", "docs/a.txt"]),
        ({"session_id": "s", "meta_filter": {"q": "Q4"}}, ["docs/b/c.pdf", "docs/a.txt"]),
        ({"user_id": "alice"}, ["mine.txt", "alice2.txt", "alice.pdf"]),
        ({"user_id": "alice", "scope": "user"}, ["alice2.txt", "alice.pdf"]),
        ({"user_id": "alice", "scope": "user", "mime_prefix": "text/"}, ["alice2.txt"]),
        ({"user_id": "carol"}, []),
        ({"limit": 2}, everything[:2]),
        ({"limit": 0}, []),
        ({"meta_filter": {}}, everything),
    ]
    for arguments, found in cases:
        assert names(await store.search(**arguments)) == found, arguments
    wrong: list[dict[str, Any]] = [{"limit": -1}, {"limit": "x"}, {"meta_filter": [1]}, {"scope": "galaxy"}]
    for bad in [*wrong, {"meta_filter": {"artfs": 1}}]:
        with pytest.raises(ArtifactStoreError):
            await store.search(**bad)


@on_both_loops
@everywhere
async def test_directories(store: ArtifactStore) -> None:
    await fill(store)
    assert names(await store.list_by_session("s")) == ["docs2/d.png", "docs/b/c.pdf", "docs/a.txt"]
    assert names(await store.list_files("s", "docs")) == ["docs2/d.png", "docs/b/c.pdf", "docs/a.txt"]
    assert names(await store.get_directory_contents("s", "docs/")) == ["docs/b/c.pdf", "docs/a.txt"]
    assert names(await store.get_directory_contents("s", "docs")) == ["docs/b/c.pdf", "docs/a.txt"]
    assert names(await store.get_directory_contents("s")) == names(await store.list_by_session("s"))
    assert names(await store.list_by_session("s", limit=1)) == ["docs2/d.png"]
    assert await store.list_by_session("unknown") == []
    for bad in ("../", "/etc", "a/../../b"):
        with pytest.raises(ArtifactStoreError):
            await store.get_directory_contents("s", bad)


@on_both_loops
@everywhere
async def test_what_changes_is_found_as_it_is(store: ArtifactStore) -> None:
    made = await fill(store)
    await store.update_metadata(made["docs/a.txt"], meta={"q": "Q1"}, mime="image/gif", filename="docs2/z.gif")
    assert names(await store.search(meta_filter={"q": "Q1"})) == ["docs2/d.png", "docs2/z.gif"]
    assert names(await store.search(session_id="s", mime_prefix="image/")) == ["docs2/d.png", "docs2/z.gif"]
    assert names(await store.get_directory_contents("s", "docs")) == ["docs/b/c.pdf"]
    await store.delete(made["docs2/d.png"])
    assert names(await store.search(meta_filter={"q": "Q1"})) == ["docs2/z.gif"]
    await store.update_metadata(made["docs/b/c.pdf"], meta={}, merge=False)
    assert names(await store.search(session_id="s", meta_filter={"q": "Q4"})) == []
    stats = await store.get_stats()
    assert (stats["total_artifacts"], stats.storage_stats.total_bytes) == (8, 8)
    await store.update_file(made["e.png"], b"12345")
    assert (await store.get_sandbox_info()).storage_stats.total_bytes == 12


@on_both_loops
async def test_what_is_found_after_a_restart(tmp_path: Path) -> None:
    async with a_store("root", tmp_path) as store:
        made = await fill(store)
        await store.update_metadata(made["docs/a.txt"], meta={"q": "new"})
        everything = await store.search()
    async with a_store("root", tmp_path) as store:
        assert await store.search() == everything
        assert names(await store.search(meta_filter={"q": "new"})) == ["docs/a.txt"]
        await store.write_namespace(made["e.png"], b"123")
    async with a_store("root", tmp_path) as store:
        assert [one.bytes for one in await store.list_by_session("t")] == [3]


@on_both_loops
@everywhere
async def test_nothing_is_cut_off(store: ArtifactStore) -> None:
    count = 2 * PAGE + 17
    items = [{"data": b"", "meta": {"odd": n % 2}} for n in range(count)]
    ids = await store.store_batch(items, session_id="s", ttl=None)
    for found in (await store.list_by_session("s"), await store.search(session_id="s", limit=None)):
        assert [one.artifact_id for one in found] == ids[::-1]
    assert len(await store.list_by_session("s", limit=PAGE + 1)) == PAGE + 1
    assert len(await store.search(meta_filter={"odd": 1})) == count // 2
    assert len({one.artifact_id for one in await store.search(session_id="s", mime_prefix="")}) == count


# the rules
def test_a_posting_is_in_order_of_making() -> None:
    posting = Posting()
    for serial in (1, 5, 9, 3, 7):
        posting.add(Serial(serial))
    assert list(posting.newest_first()) == [9, 7, 5, 3, 1]
    posting.add(Serial(10))
    assert list(posting.newest_first()) == [10, 9, 7, 5, 3, 1]


def test_postings_that_are_empty_are_gone() -> None:
    postings = Postings()
    one = [("all", "x"), ("mime", "x", "a/b")]
    postings.move(Serial(1), (), one)
    postings.move(Serial(2), (), one)
    assert postings.mimes("x", "a/") == [("mime", "x", "a/b")]
    postings.move(Serial(1), one, [])
    postings.move(Serial(2), one, [("all", "x"), ("mime", "x", "c/d")])
    assert postings.mimes("x", "") == [("mime", "x", "c/d")]
    postings.move(Serial(2), [("all", "x"), ("mime", "x", "c/d")], [])
    assert postings._terms.get(("all", "x")) is None
    assert postings.mimes("x", "") == []


def test_a_catalogue_begins_with_none() -> None:
    assert len(Catalogue(MemoryEngine()).postings.get(("all", "x"))) == 0


# speed
@pytest.mark.slow
@on_both_loops
async def test_a_hundred_thousand(tmp_path: Path) -> None:
    """Bounds are those of the design, doubled: this is no measurement."""
    count = 100_000
    assert count > SCAN
    async with a_store("memory", tmp_path) as store:
        for at in range(0, count, 5000):
            items = [{"data": b"", "meta": {"n": n, "rare": n % 1000}} for n in range(at, at + 5000)]
            await store.store_batch(items, session_id="s", ttl=None)
        searches: list[tuple[float, dict[str, Any]]] = [
            (0.004, {"session_id": "s", "limit": 20}),
            (0.040, {"session_id": "s", "meta_filter": {"rare": 7}}),
            (0.004, {"meta_filter": {"n": 77_777}}),
        ]
        for bound, search in searches:
            times = []
            for _ in range(11):
                start = perf_counter()
                found = await store.search(**search)
                times.append(perf_counter() - start)
            assert len(found) in (20, 100, 1)
            assert median(times) < bound, times
        assert len(await store.search(mime_prefix="video/")) == 0
        assert len(await store.list_by_session("s")) == count
