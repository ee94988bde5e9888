"""The owner of a store: one engine, one journal, one object directory, and the trees that are open.

Actors: the loop's thread changes trees and appends to the journal; commits and other calls of the engine run in worker
threads, one at a time (`committing`); readers of objects may be further threads (see `LocalObjects`).

A journal that cannot be written, an fsync that fails, and bytes that fail their check end changes for good
(`Trees.damaged`).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

import anyio
from anyio import to_thread

from artfs.blocks import Chunk
from artfs.errors import ArtfsError, DamagedError, FsError
from artfs.volume.commits import RETRY, Commits, NotSynced, not_synced
from artfs.volume.journal import Journal
from artfs.volume.replay import replay

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """`journal_used` of `journal_size` bytes wait for a commit; `trouble` is the last commit's error, if it failed."""

    commits: int
    journal_used: int
    journal_size: int
    open_namespaces: int
    nodes: int
    trouble: str
    failure: str


class Shard(Commits):
    """REQUIRES: all calls on one loop, and `recover` before any change."""

    async def recover(self) -> int:
        """Replay what the journal holds beyond the engine, and commit it.  Returns the number of records."""
        if not isinstance(self.log, Journal):
            return 0
        state = self.engine.record("journal", "state")
        if state is None:
            self.log.restart()
        else:
            self.log.seek(state)
        count = replay(self, self.log)
        self.log.restart()
        self.catalogue.records["journal", "state"] = self.log.state()
        self.brief.update(dict.fromkeys(self.trees))
        await self.commit()
        return count

    # providers
    async def fetch(self, chunks: Sequence[Chunk]) -> None:
        """See `Owner`; for as long as a provider fails it is tried again, up to `wait_limit`."""
        limit = monotonic() + self.settings.wait_limit
        delay = RETRY[0]
        while True:
            try:
                with anyio.fail_after(max(limit - monotonic(), 0)):
                    await self.remote.bring_all(chunks)
                return
            except (ArtfsError, OSError) as error:
                if isinstance(error, DamagedError) or monotonic() + delay >= limit:
                    log.error("%s", str(error) or "a provider did not answer in time")
                    raise FsError(errno.EIO) from error
            await anyio.sleep(delay)
            delay = min(delay * 2, RETRY[1])

    def fetch_ahead(self, chunks: Iterable[Chunk]) -> None:
        """See `Owner`."""
        self.remote.ahead(chunks)

    def stored(self) -> None:
        """See `Owner`."""
        self.remote.look_at_room()
        if self.objects.filled:
            self.kick()

    async def wait_uploads(self) -> None:
        """See `Owner`."""
        self.kick()
        if not await self.remote.wait_room(self.settings.wait_limit):
            raise FsError(errno.EIO if self.remote.waiting().error else errno.ENOSPC)

    # durability on this host
    def sync_descriptors(self) -> list[int]:
        """What fsync(2) has to sync: objects that have grown, then the journal.  Errors: FsError EIO after a sync that
        failed."""
        if isinstance(self.failure, NotSynced):
            raise FsError(errno.EIO)
        return [*self.objects.unsynced, self.log.fd] if self.log.fd >= 0 else []

    async def sync(self) -> None:
        """Everything acknowledged survives power loss.  Errors: FsError EIO."""
        fds = self.sync_descriptors()
        try:
            with self.objects.using(fds):
                await to_thread.run_sync(_sync_all, fds)
        except OSError as error:
            self.sync_failed(error.errno or errno.EIO)
            raise FsError(errno.EIO) from error

    def sync_failed(self, number: int) -> None:
        """A sync of the objects or of the journal did."""
        self.damaged(not_synced(OSError(number, "")))

    async def close(self) -> None:
        """Commit what is left and let go of everything.  Errors: as `commit`; everything is let go of all the same."""
        try:
            if self.failure is None:
                with anyio.CancelScope(shield=True):
                    await self.commit()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of everything as it is; the journal keeps what is not committed."""
        self.engine.close()
        self.objects.close()
        if isinstance(self.log, Journal):
            self.log.close()

    def statistics(self) -> ShardStatistics:
        return ShardStatistics(
            commits=self.commits,
            journal_used=self.log.used,
            journal_size=self.log.size if isinstance(self.log, Journal) else 0,
            open_namespaces=len(self.trees),
            nodes=sum(len(tree.nodes) for tree in self.trees.values()),
            trouble=str(self.trouble or ""),
            failure=str(self.failure or ""),
        )


def _sync_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.fdatasync(fd)
