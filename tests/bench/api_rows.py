"""The rows of the Python API and its figures of its own, with their floors.  Pure data.

Peers: the packages whose API it is (`SEEDS`), by provider: `filesystem`, `sqlite` and `memory` of their virtual file
system, `redis` for sessions; and `plain`: the same with the standard library, or without what the row is about;
`bare`: what a call cannot do without, by the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.report import Bar, Floor, Row, Unit

SEEDS = ("chuk-artifacts==0.9", "chuk-sessions==0.5.2")
FILESYSTEM, SQLITE, MEMORY, REDIS = "filesystem", "sqlite", "memory", "redis"
PLAIN, BARE = "plain", "bare"
PEERS = (FILESYSTEM, SQLITE, MEMORY, REDIS, PLAIN, BARE)


@dataclass(frozen=True, slots=True)
class ApiSizes:
    """How much each work does: counts of calls or files, or MiB."""

    files: int
    memory_files: int
    namespaces: int
    batch: int
    tree: int
    large: int
    large_mib: int
    sessions: int
    redis_sessions: int
    keys: int
    artifacts: int
    stream_mib: int

    @classmethod
    def at(cls, scale: float) -> ApiSizes:
        def n(full: int, least: int = 20) -> int:
            return max(least, round(full * scale))

        return cls(
            files=n(1000),
            memory_files=n(5000),
            namespaces=n(500),
            batch=n(1000),
            tree=n(10_000),
            large=n(8, 2),
            large_mib=16,
            sessions=n(3000),
            redis_sessions=n(400),
            keys=n(20_000),
            artifacts=n(100_000, 1000),
            stream_mib=n(1024),
        )


def api_rows(s: ApiSizes) -> list[Row]:
    """Each is one process on one event loop, files of 1 KiB where nothing else is said."""
    op, rate, each = Unit.PER_OPERATION, Unit.RATE, Unit.SECONDS
    mib = s.large * s.large_mib
    batch = (Floor(PLAIN, 1.7),)
    return [
        Row("api_new", "new files", op, s.files, (Floor(FILESYSTEM, 3), Floor(SQLITE, 15))),
        Row("api_read", "read files", op, s.files, (Floor(FILESYSTEM, 1),)),
        Row("api_namespace", "create_namespace", op, s.namespaces, (Floor(FILESYSTEM, 4),)),
        Row("api_batch", f"store_batch of {s.batch}", op, s.batch, (Floor(FILESYSTEM, 10),)),
        Row("api_store", "store", op, s.files, (Floor(FILESYSTEM, 5),)),
        Row("api_retrieve", "retrieve", op, s.files, (Floor(FILESYSTEM, 4),)),
        Row("api_checkpoint", f"checkpoint of {s.tree} files", each, 1, (Floor(FILESYSTEM, 30),)),
        Row("api_restore", "restore of one change in them", each, 1, (Floor(FILESYSTEM, 10),)),
        Row("api_large_write", f"write {s.large_mib} MiB", rate, mib, (Floor(FILESYSTEM, 1),)),
        Row("api_large_read", f"read {s.large_mib} MiB", rate, mib, (Floor(FILESYSTEM, 1),)),
        Row("api_memory_new", "in memory: new files", op, s.memory_files, (Floor(MEMORY, 0.5),)),
        Row("api_memory_store", "in memory: store", op, s.memory_files, (Floor(MEMORY, 1),)),
        Row("api_memory_checkpoint", f"in memory: checkpoint of {s.tree} files", each, 1, (Floor(MEMORY, 30),)),
        Row("api_memory_restore", "in memory: restore of one change", each, 1, (Floor(MEMORY, 10),)),
        Row("api_allocate", "allocate_session", op, s.sessions, (Floor(MEMORY, 0.5),)),
        Row("api_validate", "validate_session", op, s.sessions, (Floor(MEMORY, 0.5),)),
        Row("api_redis_allocate", "over Redis: allocate_session", op, s.redis_sessions, (Floor(REDIS, 10),)),
        Row("api_redis_validate", "over Redis: validate_session", op, s.redis_sessions, (Floor(REDIS, 10),)),
        Row("api_batch_create", "batch_create_files (plain: one by one)", op, s.batch, batch),
        Row("api_batch_write", "batch_write_files (plain: one by one)", op, s.batch, batch),
        Row("api_batch_read", "batch_read_files (plain: one by one)", op, s.batch, batch),
        Row("api_batch_delete", "batch_delete_paths (plain: one by one)", op, s.batch, batch),
        Row("api_batch_store", "store_batch (plain: one by one)", op, s.batch, batch),
        Row("api_key", "store.generate_artifact_key (plain: f-string)", op, s.keys, _key()),
        Row("api_session_key", "manager.generate_artifact_key (plain: f-string)", op, s.keys, _key()),
        Row(
            "api_stream_up",
            "stream_upload, 64 KiB each (plain: copyfile; bare: SHA-256, too)",
            rate,
            s.stream_mib,
            _stream(),
        ),
        Row("api_stream_down", "stream_download, 64 KiB each (plain: the same)", rate, s.stream_mib, _stream()),
    ]


def _key() -> tuple[Floor, ...]:
    return (Floor(PLAIN, 5, is_time=True),)


def _stream() -> tuple[Floor, ...]:
    return (Floor(PLAIN, 0.5),)


def api_bars(s: ApiSizes) -> list[Bar]:
    return [
        Bar("api_list", f"list_files: 20 of {s.artifacts}", "ms", 2),
        Bar("api_list_session", f"list_by_session: a session of 20, {s.artifacts} stored", "ms", 2),
        Bar("api_search", f"search by metadata: 100 of {s.artifacts}", "ms", 20),
        Bar("api_search_rare", f"search by metadata: 1 of {s.artifacts}", "ms", 20),
        Bar("api_up_rss", f"stream_upload of {s.stream_mib} MiB: growth of the peak of memory", "MiB", 32),
        Bar("api_down_rss", f"stream_download of {s.stream_mib} MiB: growth of the peak of memory", "MiB", 32),
    ]
