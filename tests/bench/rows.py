"""The rows of the benchmark with their floors, and the sizes of the work.  Pure data.

`Sizes.at(1)` is the size that the floors were set for; smaller scales are for trying things out: below
about 0.1 the start of a process outweighs the work and the floors mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.report import Bar, Floor, Row, Unit

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each workload does: counts of files or operations, or MiB."""

    files: int
    warm_passes: int
    stream_mib: int
    small_files: int
    random_mib: int
    random_writes: int
    tree_files: int
    repository_files: int
    transactions: int
    few: int
    some: int
    many: int
    changes: int

    @classmethod
    def at(cls, scale: float) -> Sizes:
        def n(full: int, least: int = 10) -> int:
            return max(least, round(full * scale))

        return cls(
            files=n(2000, 20),
            warm_passes=5,
            stream_mib=n(1024),
            small_files=n(1000),
            random_mib=n(512),
            random_writes=n(20_000, 100),
            tree_files=n(2000),
            repository_files=n(1000),
            transactions=n(300),
            few=10,
            some=n(10_000),
            many=n(100_000, 100),
            changes=min(100, n(100_000, 100)),
        )


def rows(s: Sizes) -> list[Row]:
    """Every row that runs on all peers, in the order of the table."""
    op, rate, seconds = Unit.PER_OPERATION, Unit.RATE, Unit.SECONDS
    names = (Floor("null", 1.2),)
    warm = s.files * s.warm_passes
    return [
        Row("create", "create + write + close 1 KiB", op, s.files, (Floor("null", 1.5), Floor("bindfs", 1.0))),
        Row("rename", "rename", op, s.files, names),
        Row("unlink", "unlink", op, s.files, names),
        Row("mkdir", "mkdir", op, s.files, names),
        Row("symlink", "symlink", op, s.files, names),
        Row("link", "link", op, s.files, names),
        Row("stat_cold", "stat, caches dropped", op, s.files, (Floor("null", 1.5), Floor("bindfs", 1.1))),
        Row("read_cold", "open + read + close 1 KiB, caches dropped", op, s.files, (Floor("null", 3),)),
        Row(
            "read_warm",
            "open + read + close 1 KiB, warm",
            op,
            warm,
            (Floor("null", 20), Floor("native", 0.5)),
        ),
        Row("stat_warm", "stat, warm", op, warm, (Floor("native", 0.8),)),
        Row(
            "stream_write",
            f"write {s.stream_mib} MiB + fsync",
            rate,
            s.stream_mib,
            (Floor("null", 1.0), Floor("native", 0.6)),
        ),
        Row("stream_cold", f"read {s.stream_mib} MiB, cold", rate, s.stream_mib, (Floor("native", 0.5),)),
        Row("stream_warm", f"read {s.stream_mib} MiB, warm", rate, s.stream_mib, (Floor("native", 0.6),)),
        Row(
            "random_write",
            f"4 KiB random writes in {s.random_mib} MiB + fsync",
            op,
            s.random_writes,
            (Floor("native", 0.4),),
        ),
        Row("untar", f"untar {s.tree_files} files", seconds, 1, (Floor("bindfs", 1.0, is_time=True),)),
        Row(
            "git_clone",
            f"git clone, {s.repository_files} files",
            seconds,
            1,
            (Floor("bindfs", 0.8, is_time=True),),
        ),
        Row("copy_tree", "cp -a of the untarred tree", seconds, 1, (Floor("bindfs", 1.0, is_time=True),)),
        Row("remove_tree", "rm -rf of that copy", seconds, 1, (Floor("bindfs", 1.5, is_time=True),)),
        Row(
            "sqlite",
            "sqlite transactions, rollback journal",
            Unit.PER_SECOND,
            s.transactions,
            (Floor("native", 0.5),),
        ),
    ]


def object_rows(s: Sizes) -> list[Row]:
    """Rows with an S3 server behind the mount; the peers are those of tests.bench.objects."""
    rate, seconds = Unit.RATE, Unit.SECONDS
    return [
        Row("s3_write", f"s3: write {s.stream_mib} MiB + sync", rate, s.stream_mib, (Floor("plain", 0.8),)),
        Row("s3_read", f"s3: read {s.stream_mib} MiB, cold", rate, s.stream_mib, (Floor("plain", 0.8),)),
        Row("s3_small", f"s3: {s.small_files} files of 1 KiB + sync", seconds, 1, (Floor("plain", 10),)),
        Row(
            "s3_busy",
            f"s3: write {max(s.stream_mib // 4, 1)} MiB + fsync, uploads under way",
            rate,
            max(s.stream_mib // 4, 1),
            (Floor("quiet", 0.5),),
        ),
    ]


def bars(s: Sizes) -> list[Bar]:
    """artfs' own figures, in the order of the table."""
    return [
        Bar("checkpoint_few", f"checkpoint of {s.few} files", "ms", 10),
        Bar("checkpoint_some", f"checkpoint of {s.some} files", "ms", 10),
        Bar("checkpoint_many", f"checkpoint of {s.many} files", "ms", 10),
        Bar("checkpoint_growth", "largest of the three over smallest (noise: < 2)", "×", 2),
        Bar("restore", f"restore of {s.changes} changes in {s.many} files", "ms", 50),
        Bar("clone", f"clone of {s.many} files", "s", 1),
        Bar("first_answer", f"mount of that store to first answer ({2 * s.many} files)", "s", 1),
        Bar("rss", f"resident after walking {2 * s.many} files", "MiB", 400),
        Bar("s3_rss", "s3: peak resident (journal of 128 MiB + 150)", "MiB", 278),
        Bar("split_requests", "create: requests each", ""),
        Bar("split_kernel", "per request: kernel + loop", "µs"),
        Bar("split_function", "per request: our function", "µs"),
        Bar("split_journal", "per request: journal", "µs"),
    ]
