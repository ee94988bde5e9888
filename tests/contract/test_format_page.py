"""docs/format.md says what the code does."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from struct import Struct
from typing import Any

import apsw
import pytest
import trio

from artfs import ArtifactStore
from artfs.objects import frames
from artfs.objects.marker import Marker
from artfs.objects.sqlite import SqliteProvider
from artfs.store.blobs import Pin
from artfs.store.upload_records import Record
from artfs.volume import journal as journal_module
from artfs.volume import packs
from artfs.volume import rows as rows_module
from artfs.volume.catalogue import Namespace
from tests.contract.fsck_store import Made


# the page
def _tables(heading: str) -> list[list[str]]:
    """Cells of the rows of every table of a section of docs/format.md, headings of tables left out."""
    page = Path(__file__).parents[2].joinpath("docs/format.md").read_text()
    section = re.split(r"^#+ ", page.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    found = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("|---") and not following.startswith("|---"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_page_has_every_structure() -> None:
    ours = {
        name: value
        for module in (rows_module, journal_module)
        for name, value in vars(module).items()
        if isinstance(value, Struct) and name not in ("U64", "U32")
    }
    told = {cells[0].strip("`"): cells for cells in _tables("Structures") if len(cells) == 4}
    assert told.keys() == ours.keys()
    for name, structure in ours.items():
        _, format, size, fields = told[name]
        assert (format.strip("`"), int(size)) == (structure.format, structure.size)
        values = structure.unpack(bytes(structure.size))
        assert len(re.sub(r"\(.*\)", "", fields).split(",")) == len(values), name


@pytest.mark.parametrize("table", ["meta", "head", "retired", "checkpoint", "record", "session"])
def test_the_page_has_every_column(made: Made, table: str) -> None:
    db = apsw.Connection(str(made.root / "meta.db"))
    try:
        columns = db.execute('SELECT name, type, pk > 0, "notnull" FROM pragma_table_info(?)', (table,)).fetchall()
    finally:
        db.close()
    told = []
    for name, type, what, *_ in (cells for cells in _tables(table) if cells[1] in ("TEXT", "INTEGER", "BLOB")):
        told.append((name.strip("*"), type, int(name.startswith("**")), int(not what.startswith("or null"))))
    assert told == columns


def test_the_page_has_every_field_of_a_namespace() -> None:
    told = [cells[0] for cells in _tables("record") if len(cells) == 3 and cells[1] not in ("TEXT", "`state`")]
    assert [name for name in told if not name.startswith("`")] == [field.name for field in fields(Namespace)]


@pytest.mark.parametrize(("heading", "document"), [("Pins", Pin), ("Uploads", Record), ("The marker", Marker)], ids=str)
def test_the_page_has_every_field_of_a_document(heading: str, document: Any) -> None:
    assert {cells[0] for cells in _tables(heading)} == {field.name for field in fields(document)}


async def test_the_page_has_what_the_api_writes(tmp_path: Path) -> None:
    async with ArtifactStore(root=tmp_path / "store", sandbox_id="acme") as store:
        made = await store.store_batch([{"data": b"x", "filename": "a.txt"}], user_id="ann")
        await store.update_metadata(str(made[0]), summary="s", meta={"k": 1})
        await store.presign(str(made[0]))
        await store.presign_upload(filename="b.txt")
        await store.store(b"x", ttl=0.001)
        await trio.sleep(0.05)
        await store.cleanup_expired_sessions()
    db = apsw.Connection(str(tmp_path / "store" / "meta.db"))
    try:
        written = list(db.execute("SELECT kind, doc FROM record"))
    finally:
        db.close()
    told = {cells[0].strip("`") for cells in _tables("record") if len(cells) == 3}
    assert {kind for kind, _ in written} <= told
    assert {"expired", "url", "upload", "artifact-upload"} <= {kind for kind, _ in written}
    own = {name for kind, doc in written if kind == "namespace" for name in json.loads(doc)["metadata"]["artfs"]}
    assert {"session", "owner", "sha256", "batch_index"} <= own <= {cells[0] for cells in _tables("The API's own")}
    [upload] = [json.loads(doc) for kind, doc in written if kind == "artifact-upload"]
    assert [cells[0] for cells in _tables("What an upload becomes")] == list(upload)


def test_the_page_has_every_entry_of_the_journal() -> None:
    known = re.findall(r"^    ([A-Z]) u", journal_module.__doc__ or "", re.MULTILINE)
    assert len(known) >= 9
    assert {cells[0].strip("`") for cells in _tables("The journal")} == set(known)


@pytest.mark.parametrize(
    ("heading", "name", "structure"),
    [
        ("Compressed and encrypted objects", "HEADER", frames.HEADER),
        ("Compressed and encrypted objects", "ENTRY", frames.ENTRY),
        ("Compressed and encrypted objects", "BOUND", frames.BOUND),
        ("Copies of the metadata", "TRAILER", packs.TRAILER),
    ],
)
def test_the_page_has_the_structures_of_what_providers_keep(heading: str, name: str, structure: Struct) -> None:
    [told] = [cells for cells in _tables(heading) if cells[0] == f"`{name}`"]
    assert (told[1].strip("`"), int(told[2])) == (structure.format, structure.size)


@pytest.mark.parametrize("table", ["object", "piece", "loose"])
def test_the_page_has_every_column_of_the_sqlite_provider(tmp_path: Path, table: str) -> None:
    path = tmp_path / "objects.db"
    trio.run(SqliteProvider(path).put, "a", b"bytes")
    db = apsw.Connection(str(path))
    try:
        columns = db.execute("SELECT name, type, pk > 0 FROM pragma_table_info(?)", (table,)).fetchall()
    finally:
        db.close()
    assert [(name.strip("*"), type, int(name.startswith("**"))) for name, type, *_ in _tables(table)] == columns
