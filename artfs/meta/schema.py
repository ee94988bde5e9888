"""The sqlite engine's tables, column by column, and its statements.

Words: a *head* row is the valid one of its key; a *retired* row is one that only checkpoints see.  They are
two tables, so that the hot path (a namespace, a key, a new value) is a plain upsert of one table.

The partial indexes leave out what is born at epoch 1: the rows of a namespace before its first checkpoint,
and of a fresh clone, cost no index, and nothing can ask what changed since before them (epochs begin at 1).
Plain rows are stored as born at 1, too.
"""

from __future__ import annotations

FORMAT = 2
"""The format that this code writes, and the newest that it reads; docs/format.md has its Changes."""

PAGE_SIZE = 8192
"""Bytes.  Rows of up to about 2 000 bytes stay whole within a page; longer ones spill into pages of their
own, so that 4 KiB values take more than twice their size.  Pages of 4096 spill from 1 000 on."""

TABLES = f"""
CREATE TABLE meta (          -- the database itself
    name  TEXT PRIMARY KEY,  -- 'format'
    value TEXT NOT NULL      -- format: a decimal number
) WITHOUT ROWID;

CREATE TABLE head (          -- the rows that have not died
    serial INTEGER NOT NULL, -- namespace
    key    BLOB NOT NULL,    -- first byte below 0x60: versioned, else plain
    born   INTEGER NOT NULL, -- epoch at which it was written; 1 if plain
    value  BLOB NOT NULL,
    PRIMARY KEY (serial, key)
) WITHOUT ROWID;
CREATE INDEX head_born ON head (serial, born) WHERE born <> 1;

CREATE TABLE retired (       -- versioned rows that at least one checkpoint sees and the head does not
    serial INTEGER NOT NULL,
    key    BLOB NOT NULL,
    born   INTEGER NOT NULL, -- valid for epochs born <= e < died
    died   INTEGER NOT NULL,
    value  BLOB NOT NULL,
    PRIMARY KEY (serial, key, born)
) WITHOUT ROWID;
CREATE INDEX retired_died ON retired (serial, died);
CREATE INDEX retired_born ON retired (serial, born) WHERE born <> 1;

CREATE TABLE checkpoint (
    serial      INTEGER NOT NULL, -- namespace
    epoch       INTEGER NOT NULL, -- the epoch that it pins; it sees born <= epoch < died
    id          TEXT NOT NULL,    -- never used again
    name        TEXT NOT NULL,    -- what people call it
    created     INTEGER NOT NULL, -- nanoseconds since 1970
    view        INTEGER NOT NULL, -- serial of its read-only view (numbers its inodes)
    bytes       INTEGER NOT NULL, -- usage of the head when it was made
    inodes      INTEGER NOT NULL,
    description TEXT NOT NULL,
    labels      TEXT NOT NULL,    -- a JSON object
    PRIMARY KEY (serial, epoch)
) WITHOUT ROWID;

CREATE TABLE record (        -- the catalogue's documents
    kind TEXT NOT NULL,
    id   TEXT NOT NULL,
    doc  TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;

INSERT INTO meta VALUES ('format', '{FORMAT}');
"""

# rows
GET = "SELECT value FROM head WHERE serial = ? AND key = ?"
GET_AT_HEAD = "SELECT value FROM head WHERE serial = ? AND key = ? AND born <= ?"
GET_AT_RETIRED = """SELECT value FROM retired WHERE serial = ?1 AND key = ?2 AND born <= ?3 AND died > ?3
    ORDER BY born DESC LIMIT 1"""
SCAN = "SELECT key, value FROM head WHERE serial = ?1 AND key >= ?2 AND key < ?3 ORDER BY key LIMIT ?4"
SCAN_ON = "SELECT key, value FROM head WHERE serial = ?1 AND key >= ?2 ORDER BY key LIMIT ?3"
SCAN_AT = """
    SELECT key, value FROM head WHERE serial = ?1 AND key >= ?2 AND key < ?3 AND born <= ?5
    UNION ALL SELECT key, value FROM retired
        WHERE serial = ?1 AND key >= ?2 AND key < ?3 AND born <= ?5 AND died > ?5
    ORDER BY key LIMIT ?4"""

RETIRE = """INSERT INTO retired SELECT serial, key, born, ?3, value FROM head
    WHERE serial = ?1 AND key = ?2 AND born <= ?4"""
PUT = """INSERT INTO head VALUES (?, ?, ?, ?)
    ON CONFLICT (serial, key) DO UPDATE SET born = excluded.born, value = excluded.value"""
DELETE = "DELETE FROM head WHERE serial = ? AND key = ?"

# versions; the literal `born <> 1` lets sqlite use the partial indexes (`born > 1` would be taken as
# the bound to search by, and the real one only as a filter)
NEWEST = "SELECT coalesce(max(epoch), 0) FROM checkpoint WHERE serial = ?"
PINNED = """SELECT serial, max(epoch) FROM checkpoint
    WHERE serial IN (SELECT value FROM json_each(?)) GROUP BY serial"""
NEIGHBOURS = """SELECT (SELECT coalesce(max(epoch), 0) FROM checkpoint WHERE serial = ?1 AND epoch < ?2),
    (SELECT min(epoch) FROM checkpoint WHERE serial = ?1 AND epoch > ?2)"""
CHECKPOINTS = """SELECT epoch, id, name, created, view, bytes, inodes, description, labels
    FROM checkpoint WHERE serial = ? ORDER BY epoch"""
HAS_CHECKPOINT = "SELECT 1 FROM checkpoint WHERE serial = ? AND epoch = ?"
PUT_CHECKPOINT = "REPLACE INTO checkpoint VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
DELETE_CHECKPOINT = "DELETE FROM checkpoint WHERE serial = ? AND epoch = ?"
FREE = """DELETE FROM retired INDEXED BY retired_died
    WHERE serial = ? AND died > ? AND died <= ? AND born > ? AND born <= ?"""

RESTORE_RETIRE = """INSERT INTO retired SELECT serial, key, born, ?3, value FROM head INDEXED BY head_born
    WHERE serial = ?1 AND born <> 1 AND born > ?2 AND born <= ?4"""
RESTORE_DELETE = "DELETE FROM head INDEXED BY head_born WHERE serial = ? AND born <> 1 AND born > ?"
RESTORE_PUT = """INSERT INTO head SELECT serial, key, ?3, value FROM retired INDEXED BY retired_died
    WHERE serial = ?1 AND died > ?2 AND born <= ?2"""

GONE = """SELECT key, value FROM retired INDEXED BY retired_died
    WHERE serial = ?1 AND died > ?2 AND died <= ?3 AND born <= ?2"""
CAME = """
    SELECT key, value FROM head INDEXED BY head_born
        WHERE serial = ?1 AND born <> 1 AND born > ?2 AND born <= ?3
    UNION ALL SELECT key, value FROM retired INDEXED BY retired_born
        WHERE serial = ?1 AND born <> 1 AND born > ?2 AND born <= ?3 AND died > ?3"""

CLONE_HEAD = """INSERT INTO head SELECT ?2, key, 1, value FROM head
    WHERE serial = ?1 AND key < x'60' AND born <= ?3 ORDER BY key"""
CLONE_RETIRED = """INSERT INTO head SELECT ?2, key, 1, value FROM retired INDEXED BY retired_died
    WHERE serial = ?1 AND died > ?3 AND born <= ?3"""
OCCUPIED = """SELECT EXISTS (SELECT 1 FROM head WHERE serial = ?1)
    OR EXISTS (SELECT 1 FROM retired WHERE serial = ?1)
    OR EXISTS (SELECT 1 FROM checkpoint WHERE serial = ?1)"""
SERIALS = """WITH RECURSIVE found (serial) AS (SELECT min(serial) FROM {table}
    UNION ALL SELECT (SELECT min(serial) FROM {table} WHERE serial > found.serial) FROM found
        WHERE found.serial IS NOT NULL)
    SELECT serial FROM found WHERE serial IS NOT NULL"""
VERSIONED_TABLES = ("head", "retired", "checkpoint")

# every version at once; a key's first byte is a range of the primary key
NAMED = {
    table: f"SELECT serial, key, born, value FROM {table} WHERE serial = ?1 AND key >= ?2 AND key < ?3"
    for table in ("head", "retired")
}
SWAP = {
    table: f"UPDATE {table} SET value = ?5 WHERE serial = ?1 AND key = ?2 AND born = ?3 AND value = ?4"
    for table in ("head", "retired")
}

# records
GET_RECORD = "SELECT doc FROM record WHERE kind = ? AND id = ?"
GET_RECORDS = "SELECT id, doc FROM record WHERE kind = ?"
PUT_RECORD = "REPLACE INTO record VALUES (?, ?, ?)"
DELETE_RECORD = "DELETE FROM record WHERE kind = ? AND id = ?"

CHECKS = {
    "range is empty": "SELECT serial, key, born FROM retired WHERE born < 1 OR born >= died",
    "ranges of retired rows overlap": """SELECT serial, key, born FROM (SELECT serial, key, born, died,
        lead(born) OVER (PARTITION BY serial, key ORDER BY born) AS next FROM retired) WHERE next < died""",
    "head row overlaps a retired one": """SELECT DISTINCT h.serial, h.key, h.born FROM retired r
        CROSS JOIN head h ON h.serial = r.serial AND h.key = r.key WHERE h.born < r.died""",
    "retired row is seen by no checkpoint": """SELECT serial, key, born FROM retired r WHERE NOT EXISTS (
        SELECT 1 FROM checkpoint c WHERE c.serial = r.serial AND c.epoch >= r.born AND c.epoch < r.died)""",
    "plain row is versioned": "SELECT serial, key, born FROM head WHERE key >= x'60' AND born <> 1",
    "plain row is retired": "SELECT serial, key, born FROM retired WHERE key >= x'60'",
    "checkpoint's labels are no JSON object": """SELECT serial, name, epoch FROM checkpoint
        WHERE NOT json_valid(labels) OR json_type(labels) != 'object'""",
}
"""What is wrong -> a query of the (serial, key or name, epoch) that it concerns; none if all is well."""
