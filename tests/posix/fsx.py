"""Random operations on one file against a bytearray that says what the file must hold.

`python -m tests.posix.fsx FILE --seed N --steps N [--no-mmap]` runs it by hand; a failure prints
the seed and the last operations. The model is the only truth: after each operation the size is
compared, each read compares what it reads, and every 50 operations the whole file is compared.

Operations that the file system refuses with EOPNOTSUPP leave the model alone and are counted.
"""

import argparse
import errno
import mmap
import os
import random
from collections import Counter, deque
from collections.abc import Callable

from tests.posix.calls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate


class Mismatch(AssertionError):
    """The file is not what the model says."""


class Fsx:
    """One run; sizes and offsets are bytes, `limit` is the largest size of the file."""

    def __init__(self, path: str, seed: int, *, use_mmap: bool = True, limit: int = 3_000_000) -> None:
        self.path, self.seed, self.limit = path, seed, limit
        self.random = random.Random(seed)
        self.model = bytearray()
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.history: deque[str] = deque(maxlen=30)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self.operations: list[Callable[[], None]] = [
            self.read,
            self.read,
            self.write,
            self.write,
            self.write,
            self.append,
            self.truncate,
            self.punch,
            self.zero,
            self.allocate,
            self.copy_range,
            self.sync,
            self.reopen,
            self.seek,
        ]
        if use_mmap:
            self.operations += [self.map_read, self.map_write, self.map_write]

    def run(self, steps: int) -> None:
        """Do `steps` operations; raises Mismatch with the seed and the history."""
        try:
            for step in range(1, steps + 1):
                operation = self.random.choice(self.operations)
                operation()
                self.done[operation.__name__] += 1
                size = os.fstat(self.fd).st_size
                self.expect(size == len(self.model), f"size {size}, expected {len(self.model)}")
                if step % 50 == 0 or step == steps:
                    self.compare(0, len(self.model) + 1)
        except (Mismatch, OSError) as failure:
            last = "\n  ".join(self.history)
            raise Mismatch(f"{failure}; seed {self.seed}, last operations:\n  {last}") from failure
        finally:
            os.close(self.fd)

    def expect(self, holds: bool, message: str) -> None:
        if not holds:
            raise Mismatch(message)

    def note(self, text: str) -> None:
        self.history.append(text)

    def span(self, end: int, largest: int = 200_000) -> tuple[int, int]:
        """A random (offset, length) below `end` and `limit`; bounds of pages and blocks are likely."""
        end = max(1, min(end, self.limit))
        offset = self.random.randrange(end)
        if self.random.random() < 0.3:
            unit = self.random.choice((512, 4096, 1 << 17, 1 << 20))
            offset = max(0, min(end - 1, offset // unit * unit + self.random.choice((-1, 0, 0, 1))))
        length = self.random.choice((1, 100, 4096, 8192, largest))
        return offset, max(1, min(self.random.randint(1, length), end - offset))

    def compare(self, offset: int, length: int) -> None:
        got, want = os.pread(self.fd, length, offset), self.model[offset : offset + length]
        if got != want:
            first = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), None)
            where = f"first difference at {offset + first:#x}" if first is not None else "lengths differ"
            raise Mismatch(f"read({offset:#x}, {length:#x}): {len(got)} of {len(want)} bytes, {where}")

    def put(self, offset: int, data: bytes) -> None:
        """Apply a write to the model; a gap is filled with zeros."""
        self.model.extend(bytes(max(0, offset - len(self.model))))
        self.model[offset : offset + len(data)] = data

    def read(self) -> None:
        offset, length = self.span(len(self.model) + 5000)
        self.note(f"read {offset:#x} {length:#x}")
        self.compare(offset, length)

    def write(self) -> None:
        offset, length = self.span(self.limit if self.random.random() < 0.2 else len(self.model) + 10_000)
        self.note(f"write {offset:#x} {length:#x}")
        data = self.random.randbytes(length)
        self.expect(os.pwrite(self.fd, data, offset) == length, "short write")
        self.put(offset, data)

    def append(self) -> None:
        length = min(self.random.randint(1, 20_000), self.limit - len(self.model))
        if length <= 0:
            return
        self.note(f"append {length:#x}")
        data = self.random.randbytes(length)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self.expect(os.write(fd, data) == length, "short append")
        os.close(fd)
        self.put(len(self.model), data)

    def truncate(self) -> None:
        size = self.span(self.limit if self.random.random() < 0.3 else len(self.model) + 10_000)[0]
        self.note(f"truncate {len(self.model):#x} to {size:#x}")
        if self.random.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def _fallocate(self, name: str, mode: int, offset: int, length: int) -> bool:
        self.note(f"{name} {offset:#x} {length:#x}")
        try:
            fallocate(self.fd, mode, offset, length)
        except OSError as failure:
            if failure.errno != errno.EOPNOTSUPP:
                raise
            self.refused[name] += 1
            return False
        return True

    def punch(self) -> None:
        offset, length = self.span(len(self.model) + 1, 1_500_000)
        if self._fallocate("punch", FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length):
            end = min(offset + length, len(self.model))
            self.model[offset:end] = bytes(max(0, end - offset))

    def zero(self) -> None:
        offset, length = self.span(len(self.model) + 5000)
        keep = self.random.random() < 0.5
        if self._fallocate("zero", FALLOC_ZERO_RANGE | (FALLOC_KEEP_SIZE if keep else 0), offset, length):
            end = min(offset + length, len(self.model)) if keep else offset + length
            if end > offset:
                self.put(offset, bytes(end - offset))

    def allocate(self) -> None:
        offset, length = self.span(len(self.model) + 50_000)
        keep = self.random.random() < 0.5
        if self._fallocate("allocate", FALLOC_KEEP_SIZE if keep else 0, offset, length) and not keep:
            self.model.extend(bytes(max(0, offset + length - len(self.model))))

    def copy_range(self) -> None:
        if len(self.model) < 2:
            return
        offset, length = self.span(len(self.model), 1_500_000)
        target = self.random.randrange(self.limit - length + 1)
        if offset < target + length and target < offset + length:
            return  # overlapping ranges are EINVAL
        self.note(f"copy {offset:#x} {length:#x} to {target:#x}")
        done = 0
        while done < length:
            count = os.copy_file_range(self.fd, self.fd, length - done, offset + done, target + done)
            self.expect(count > 0, "copy_file_range ended early")
            done += count
        self.put(target, bytes(self.model[offset : offset + length]))

    def map_read(self) -> None:
        if not self.model:
            return
        offset, length = self.span(len(self.model))
        self.note(f"map_read {offset:#x} {length:#x}")
        with mmap.mmap(self.fd, len(self.model), prot=mmap.PROT_READ) as mapped:
            self.expect(
                mapped[offset : offset + length] == self.model[offset : offset + length],
                "mapped bytes differ",
            )

    def map_write(self) -> None:
        offset, length = self.span(len(self.model) + 10_000)
        self.note(f"map_write {offset:#x} {length:#x}")
        if offset + length > len(self.model):
            os.ftruncate(self.fd, offset + length)
        data = self.random.randbytes(length)
        self.put(offset, data)
        with mmap.mmap(self.fd, len(self.model)) as mapped:
            mapped[offset : offset + length] = data
            if self.random.random() < 0.5:
                mapped.flush()

    def seek(self) -> None:
        """Between a position and the data that SEEK_DATA finds there is nothing but zeros."""
        if not self.model:
            return
        offset = self.random.randrange(len(self.model))
        self.note(f"seek {offset:#x}")
        try:
            found = os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as failure:
            if failure.errno != errno.ENXIO:
                raise
            found = len(self.model)
        self.expect(not any(self.model[offset:found]), f"SEEK_DATA skips data: {offset:#x} to {found:#x}")

    def sync(self) -> None:
        self.note("sync")
        self.random.choice((os.fsync, os.fdatasync))(self.fd)

    def reopen(self) -> None:
        self.note("reopen")
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)


def main() -> None:
    parser = argparse.ArgumentParser(description="random operations on one file against a model")
    parser.add_argument("file")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--no-mmap", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    run = Fsx(options.file, options.seed, use_mmap=not options.no_mmap)
    run.run(options.steps)
    print(f"done {dict(run.done)}, refused {dict(run.refused)}")


if __name__ == "__main__":
    main()
