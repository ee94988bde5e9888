"""`python -m tests.bench`: runs the workloads on all peers in turn and prints what artfs' speed is worth.

Rounds are interleaved: in each round every workload visits all peers one after the other, in an order that
is rotated from round to round, so that a slow minute of the machine hits all of them.  Progress goes to
stderr, the tables to stdout, the document to --json.  Exit code: 0, also when floors are missed; 1 when
something failed, or, with --strict, a floor was missed; 2 for wrong use.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.bench import api, objects, own, report
from tests.bench.api_rows import PEERS as API_PEERS
from tests.bench.api_rows import ApiSizes, api_bars, api_rows
from tests.bench.peers import Peer, PeerError, is_mounted, start
from tests.bench.report import PEERS, SUBJECT, Results
from tests.bench.rows import Sizes, bars, object_rows, rows
from tests.bench.works import WORKS, Stock, WrongAnswer, can_drop_caches, make_stock

LIMIT = 600.0
Failure = (OSError, WrongAnswer, subprocess.CalledProcessError, sqlite3.Error)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="artfs beside a native directory, a null file system and bindfs",
    )
    p.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds; medians are taken over them (3)")
    p.add_argument("--scale", type=float, default=1.0, metavar="X", help="size of all work; 1 = what floors mean")
    p.add_argument("--only", default="", metavar="ROW,…", help="these rows (shell patterns); see --list")
    p.add_argument("--peers", default=",".join(PEERS), metavar="PEER,…", help="also NAME=DIR; %(default)s")
    p.add_argument("--json", type=Path, metavar="FILE", help="write every sample, ratio and verdict there")
    p.add_argument("--artfs", default=shlex.join([sys.executable, "-m", "artfs"]), metavar="CMD", help="%(default)s")
    p.add_argument("--scratch", type=Path, metavar="DIR", help="where to work: a disk, not a tmpfs (TMPDIR or /tmp)")
    p.add_argument(
        "--seeds",
        type=Path,
        metavar="DIR",
        default=Path(".venv-seeds"),
        help="a virtual environment with the packages of the api rows, made where it is missing; %(default)s",
    )
    p.add_argument("--strict", action="store_true", help="a missed floor or bar makes the exit code 1")
    p.add_argument("--list", action="store_true", help="print the names of the rows and end")
    found = p.parse_args(argv)
    if found.scratch is not None and not found.scratch.is_dir():
        p.error(f"--scratch: there is no directory {found.scratch}; make it")
    if found.rounds < 1 or found.scale <= 0:
        p.error("--rounds must be at least 1 and --scale more than 0")
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compete(results: Results, wanted: set[str], peers: Sequence[Peer], sizes: Sizes, stock: Stock, rounds: int) -> None:
    """Runs every workload that has a wanted row, interleaved; a peer that fails one is left out of it."""
    by_name = {peer.name: peer for peer in peers}
    out: set[tuple[str, str]] = set()
    for number, order in enumerate(report.turns([peer.name for peer in peers], rounds), 1):
        for work, measured in WORKS.items():
            name = work.__name__
            if not wanted.intersection(measured):
                continue
            for peer in (by_name[n] for n in order if (n, name) not in out):
                say(f"round {number}/{rounds}  {name}  {peer.name}")
                place = peer.directory / f"{name}-{number}"
                gc.collect()
                gc.disable()
                try:
                    with peer.guard(LIMIT):
                        place.mkdir()
                        seconds = work(place, sizes, stock)
                        shutil.rmtree(place)
                except Failure as error:
                    out.add((peer.name, name))
                    results.failures[f"{name} @ {peer.name}"] = f"{type(error).__name__}: {error}"
                else:
                    results.add(peer.name, {row: s for row, s in seconds.items() if row in wanted})
                finally:
                    gc.enable()


def run(options: argparse.Namespace, scratch: Path) -> int:
    sizes = Sizes.at(options.scale)
    api_sizes = ApiSizes.at(options.scale)
    all_rows, s3_rows, apis = rows(sizes), object_rows(sizes), api_rows(api_sizes)
    all_bars = [*bars(sizes), *api_bars(api_sizes)]
    judged = [*all_rows, *s3_rows, *apis]
    specs = [s for s in options.peers.split(",") if s]
    patterns = [p for p in options.only.split(",") if p]
    wanted = report.chosen([*(r.name for r in judged), *(b.name for b in all_bars)], patterns)
    shared = wanted & {r.name for r in all_rows}
    with_s3 = {name for name in wanted if name.startswith("s3_")}
    with_api = {name for name in wanted if name.startswith("api_")}
    alone = wanted & {b.name for b in all_bars} - with_s3 - with_api
    command = shlex.split(options.artfs)
    results = Results()
    if not can_drop_caches():
        say("not root: rows that need cold caches are left out")
    peers: list[Peer] = []
    with contextlib.ExitStack() as stack:
        for spec in specs if shared else ():
            try:
                peers.append(stack.enter_context(start(spec, scratch, command)))
            except (PeerError, OSError) as error:
                results.failures[f"start @ {spec}"] = str(error)
                say(f"{spec} is left out: {error}")
        if peers:
            (scratch / "stock").mkdir()
            stock = make_stock(scratch / "stock", sizes)
            compete(results, shared, peers, sizes, stock, options.rounds)
    if SUBJECT in specs and alone:
        say("artfs alone")
        try:
            own.measure(results, alone, command, scratch, sizes, options.rounds)
        except PeerError as error:
            results.failures["own @ artfs"] = str(error)
    if SUBJECT in specs and with_s3:
        say("artfs before an S3 server")
        try:
            objects.measure(results, with_s3, command, scratch, sizes, options.rounds)
        except (PeerError, OSError, ImportError, RuntimeError) as error:
            results.failures["objects @ artfs"] = f"{type(error).__name__}: {error}"
    if SUBJECT in specs and with_api:
        say("the Python API")
        try:
            api.measure(results, with_api, options.seeds, scratch, api_sizes, options.rounds)
        except (PeerError, OSError, RuntimeError) as error:
            results.failures["api @ artfs"] = f"{type(error).__name__}: {error}"
    present = [peer.name for peer in peers]
    for part in (
        report.table(results, all_rows, present),
        report.table(results, s3_rows, [objects.PLAIN, objects.QUIET, SUBJECT]),
        report.table(results, apis, [*API_PEERS, SUBJECT]),
        report.own_table(results, all_bars),
    ):
        if part:
            print("\n".join(part), end="\n\n")
    if SUBJECT in present or with_api:
        print(f"÷ peer: speed of artfs as a multiple of the peer's (medians of {options.rounds} rounds)")
    missed = report.missed(results, judged, all_bars)
    for line in missed:
        print(f"missed: {line}")
    for where, what in results.failures.items():
        print(f"failed: {where}: {what}")
    if options.json:
        about = {
            "scale": options.scale,
            "rounds": options.rounds,
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "scratch_file_system": _file_system(scratch),
        }
        found = report.document(results, judged, all_bars, present, about)
        options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return 1 if results.failures or (options.strict and missed) else 0


def _file_system(place: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", str(place)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    if options.list:
        sizes = Sizes.at(options.scale)
        api_sizes = ApiSizes.at(options.scale)
        titles = {r.name: r.title for r in rows(sizes) + object_rows(sizes) + api_rows(api_sizes)}
        titles |= {b.name: b.title for b in bars(sizes) + api_bars(api_sizes)}
        for name, title in titles.items():
            print(f"{name:20} {title}")
        return 0
    # Everything is taken down by leaving blocks, so a request to end must be an exception.
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    scratch = Path(tempfile.mkdtemp(prefix="artfs-bench-", dir=options.scratch)).resolve()
    if _file_system(scratch) == "tmpfs":
        say(f"{scratch} is a tmpfs: fsync costs nothing there, and the native figures mean little (--scratch)")
    try:
        return run(options, scratch)
    except ValueError as error:
        say(str(error))
        return 2
    finally:
        left = [p for p in scratch.iterdir() if is_mounted(p)]
        if left:
            say(f"still mounted, so kept: {' '.join(map(str, left))}")
        else:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
