"""Faults at every file operation of a store, and a model of what must be there after each; `make faults` runs it.

What a process does to its files is recorded by a library that is loaded before libc (record.c), so that a store is
looked at as it would be after a cut at any operation: killed there, or after a power cut, where what no fsync covers is
there, lost, torn or out of order. Directory entries are taken as written in order. Other processes are really killed,
refused space and told of errors at each operation, and whole stores get flipped bits, zeroed and overwritten sectors,
and so do the logs that killed writers left behind. Clocks jump, and small file systems really fill up, where this
process may mount one.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from recorded_disk import SECTOR, Disk, fates, operations
from workload import META, Rooms, State, Workload, after_steps, header_of, nodes_of, read, states, stored_text

from shared_context.errors import SharedContextError, StoreFormatError
from shared_context.store.database import Database
from shared_context.store.line_rows import Entry
from shared_context.store.sqlite_file import FILE, is_vacant

LIBRARY = "SHARED_CONTEXT_RECORD"
ACKNOWLEDGED = "acknowledged"
"""A file beside the store: each of its bytes is a step whose success was told."""


@dataclass
class Tally:
    """What became of the faults, by kind."""

    faults: Counter = field(default_factory=Counter)
    told: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, kind: str, outcome: str, where: str) -> None:
        self.faults[kind] += 1
        if outcome == "told":
            self.told[kind] += 1
        elif outcome != "whole":
            self.wrong.append(f"{kind}, {where}: {outcome}")


# Cuts, from a record


def check_image(image: dict[str, bytes], root: Path, scratch: Path, expected: list[tuple[State, int]]) -> str:
    """Whether a store is what it was after the last step that was acknowledged, or after the next one."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    done = image.pop(str(root / ACKNOWLEDGED), b"").count(b".")
    for path, content in image.items():
        target = scratch / Path(path).relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    store = scratch / "store"
    try:
        if is_vacant(store):
            if done:
                return f"the store is gone after {done} steps"
            Database(store, META).close()
            return "whole"
        found = read(store)
        # It goes on as if nothing had been.
        database, more = Database(store), stored_text(1, 9)
        with Rooms(store, database).catalogue.changing() as change:
            change.insert(Entry("document", "one more", {"version": 0}), more, nodes_of(more, 1), header_of(0))
        database.close()
    except (SharedContextError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    allowed = expected[max(0, done - 1) : done + 1] if done else expected[:1]
    return "whole" if found in allowed else f"after {done} steps another state"


def cuts(tally: Tally, seed: int, steps: int, work: Path, end: float, most: int, syncs: bool) -> None:
    """Look at a store after a cut at every operation of a workload."""
    root, log = work / "root", work / "log"
    shutil.rmtree(root, ignore_errors=True)
    log.unlink(missing_ok=True)
    root.mkdir(parents=True)

    def work_on() -> None:
        library = recorder()
        library.watch(str(root).encode())
        library.begin(str(log).encode())
        marks = os.open(root / ACKNOWLEDGED, os.O_WRONLY | os.O_CREAT)

        def acknowledge() -> None:
            os.write(marks, b".")
            os.fsync(marks)

        workload = Workload(root / "store", seed)
        acknowledge()
        now: State = {}
        for step in range(steps):
            now = workload.step(now, step)
            acknowledge()
        workload.close()

    assert in_child(work_on) == 0, "the workload itself failed"
    expected = [*states(seed, steps)]
    random, disk = Random(seed), Disk(syncs)
    done = operations(log)
    chosen = set(random.sample(range(len(done)), min(most, len(done))))
    for number, operation in enumerate(done):
        disk.do(operation)
        if number not in chosen:
            continue
        for kind, survives in fates(random):
            if time.monotonic() > end:
                return
            image = disk.image(survives)
            mark = str(root / ACKNOWLEDGED)
            image[mark] = disk.image(lambda one: one).get(mark, b"")
            tally.note(kind, check_image(image, root, work / "image", expected), f"seed {seed}, operation {number}")


# Faults in a process

KINDS = {"no space": (errno.ENOSPC, 1 << 30), "no space once": (errno.ENOSPC, 1), "input/output error": (errno.EIO, 1)}


def refusals(tally: Tally, seed: int, steps: int, work: Path, end: float, most: int) -> None:
    """Refuse, or kill at, operations of a workload in a process of its own."""
    random = Random(f"refusals {seed}")
    for number in range(most):
        if time.monotonic() > end:
            return
        kind = random.choice([*KINDS, "killed"])
        after = random.randrange(12 * steps)
        root = work / "refused"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        Workload(root / "store", seed).close()
        in_child(partial(refused, kind, after, root, seed, steps))
        marks = [json.loads(line) for line in (root / "marks").read_text().splitlines()]
        taken = [step for step, mark in marks if mark == "done"]
        begun = [step for step, mark in marks if mark == "begun"]
        # A step that was cut off by a kill, or that the disk did not confirm, may be there or not; one that was refused
        # is not.
        open_ends = [step for step, mark in marks if mark == "unknown"]
        open_ends += begun[-1:] if kind == "killed" and marks[-1][1] == "begun" else []
        options = [taken] + [sorted([*taken, step]) for step in open_ends]
        try:
            outcome = (
                "whole" if read(root / "store") in [after_steps(seed, one) for one in options] else "another state"
            )
        except (SharedContextError, AssertionError) as error:
            outcome = f"{type(error).__name__}: {error}"
        tally.note(kind, outcome, f"seed {seed}, run {number}, operation {after}")


def refused(kind: str, after: int, root: Path, seed: int, steps: int) -> None:
    marks = os.open(root / "marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    logging.disable()
    workload, now = Workload(root / "store", seed), {}
    library = recorder()
    library.watch(str(root / "store").encode())
    library.refuse(after, *((-1, 1) if kind == "killed" else KINDS[kind]))
    for step in range(steps):
        os.write(marks, f"{json.dumps([step, 'begun'])}\n".encode())
        try:
            after_it = workload.step(now, step)
        except SharedContextError as error:
            mark = "unknown" if "it is not known whether" in str(error) else "refused"
            os.write(marks, f"{json.dumps([step, mark])}\n".encode())
            continue
        # What changes nothing here might change a store that has an unconfirmed step.
        os.write(marks, f"{json.dumps([step, 'idle' if after_it == now else 'done'])}\n".encode())
        now = after_it


# Damage


def damage(tally: Tally, seed: int, steps: int, work: Path, end: float, most: int) -> None:
    """Change bytes in the files of a store, and see whether it is told."""
    random = Random(f"damage {seed}")
    whole = work / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    workload, now = Workload(whole / "store", seed), {}
    for step in range(steps):
        now = workload.step(now, step)
    workload.close()
    expected = read(whole / "store")
    for number in range(most):
        if time.monotonic() > end:
            return
        shutil.rmtree(work / "hurt", ignore_errors=True)
        shutil.copytree(whole, work / "hurt")
        files = sorted(path for path in (work / "hurt").rglob("*") if path.is_file() and path.stat().st_size)
        file = random.choice([*files, *[one for one in files if one.name == FILE] * len(files)])
        kind, at = hurt(file, random)
        where = f"seed {seed}, number {number}, byte {at} of {file.name}"
        try:
            tally.note(kind, "whole" if read(work / "hurt" / "store") == expected else "silent", where)
        except StoreFormatError:
            tally.note(kind, "told", where)
        except (SharedContextError, AssertionError, Exception) as error:
            tally.note(kind, f"{type(error).__name__}: {error}", where)


def hurt(file: Path, random: Random) -> tuple[str, int]:
    """Change bytes of a file; returns how, and where."""
    content = bytearray(file.read_bytes())
    kind, at = random.choice(["bit flipped", "sector zeroed", "sector overwritten"]), random.randrange(len(content))
    if kind == "bit flipped":
        content[at] ^= 1 << random.randrange(8)
    else:
        first = at - at % SECTOR
        last = min(first + SECTOR, len(content))
        filled = bytes(last - first) if kind == "sector zeroed" else random.randbytes(last - first)
        content[first:last] = filled
    file.write_bytes(content)
    return kind, at


class Warnings(logging.Handler):
    """What the store's file said in the log."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def live_logs(tally: Tally, seed: int, steps: int, work: Path, end: float, most: int) -> None:
    """Change bytes in what a killed writer left behind: changes that are lost have to be told."""
    random = Random(f"logs {seed}")
    root = work / "live"
    shutil.rmtree(root, ignore_errors=True)

    def killed() -> None:
        workload, now = Workload(root / "store", seed), {}
        for step in range(steps):
            now = workload.step(now, step)
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(killed)
    earlier = states(seed, steps)
    for number in range(most):
        if time.monotonic() > end:
            return
        shutil.rmtree(work / "hurt", ignore_errors=True)
        shutil.copytree(root, work / "hurt")
        logs = [work / "hurt" / "store" / f"{FILE}-{kind}" for kind in ("wal", "wal", "wal", "shm")]
        file = random.choice([log for log in logs if log.exists() and log.stat().st_size])
        kind, at = hurt(file, random)
        where = f"seed {seed}, number {number}, byte {at} of {file.name}"
        logging.disable(logging.NOTSET)
        logger, heard = logging.getLogger("shared_context.store.store_file"), Warnings()
        logger.addHandler(heard)
        try:
            found = read(work / "hurt" / "store")
            lost = any("lost up to" in line for line in heard.said)
            outcome = "whole" if found == earlier[-1] else "told" if lost and found in earlier else "silent"
        except StoreFormatError:
            outcome = "told"
        except (SharedContextError, AssertionError, Exception) as error:
            outcome = f"{type(error).__name__}: {error}"
        finally:
            logger.removeHandler(heard)
            logging.disable()
        tally.note(f"log of a killed writer, {kind}", outcome, where)


# Clocks and small file systems

YEARS = 20 * 366 * 24 * 3600
HUNG_SECONDS = 120
RUNS_OF_A_SEED = 10


def clocks(tally: Tally, seed: int, steps: int, work: Path, end: float, most: int) -> None:
    """Let the clock jump before every step: all is done as if it had not."""
    for number in range(min(most, RUNS_OF_A_SEED)):
        if time.monotonic() > end:
            return
        random = Random(f"clocks {seed} {number}")
        root = work / "clocks"
        shutil.rmtree(root, ignore_errors=True)
        status = in_child(partial(jumping, root, seed, steps, random))
        tally.note("clock jumps", "whole" if status == 0 else f"ended with {status}", f"seed {seed}, run {number}")


def jumping(root: Path, seed: int, steps: int, random: Random) -> None:
    signal.alarm(HUNG_SECONDS)
    library, now = recorder(), {}
    workload = Workload(root / "store", seed)
    for step in range(steps):
        library.jump(random.choice([0, -1, 3600, random.randint(-YEARS, YEARS)]))
        if step % 3 == 2:
            workload.close()
            workload = Workload(root / "store", seed)
        now = workload.step(now, step)
    assert read(root / "store") == states(seed, steps)[-1]


SMALL_BYTES = 1 << 20


def small_disk(tally: Tally, seed: int, steps: int, work: Path, end: float, most: int) -> None:
    """Let a file system fill up really: what was told is there once there is space again."""
    random = Random(f"small {seed}")
    disk = work / "small"
    for number in range(min(most, RUNS_OF_A_SEED)):
        if time.monotonic() > end:
            return
        disk.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            return  # not ours to do
        try:
            outcome = filled(disk, work / "marks", seed, steps, random)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        tally.note("a file system fills up", outcome, f"seed {seed}, run {number}")


def filled(disk: Path, marks: Path, seed: int, steps: int, random: Random) -> str:
    """Take steps while somebody else takes nearly all space, and look at the store when it is free again."""
    marks.unlink(missing_ok=True)
    Workload(disk / "store", seed).close()
    with (disk / "other").open("wb") as other:
        os.posix_fallocate(other.fileno(), 0, max(1, free_bytes(disk) - random.randrange(SMALL_BYTES // 2)))

    def write() -> None:
        signal.alarm(HUNG_SECONDS)
        logging.disable()
        now, taken = {}, []
        try:
            workload = Workload(disk / "store", seed)
        except SharedContextError:
            return  # not even room for the log's index
        for step in range(steps):
            try:
                after = workload.step(now, step)
            except SharedContextError:
                continue
            if after != now:
                taken.append(step)
            now = after
            marks.write_text(json.dumps(taken))
        if random.random() < 0.5:
            workload.close()

    if status := in_child(write):
        return f"the writer ended with {status}"
    (disk / "other").unlink()
    try:
        expected = after_steps(seed, json.loads(marks.read_text()) if marks.exists() else [])
        return "whole" if read(disk / "store") == expected else "another state"
    except (SharedContextError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"


def free_bytes(folder: Path) -> int:
    told = os.statvfs(folder)
    return told.f_bavail * told.f_frsize


def in_child(work: Callable[[], None]) -> int:
    """Do something in a process of its own, which ends with it; returns how it ended."""
    if (child := os.fork()) == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def recorder() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ[LIBRARY])
    library.refuse.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_long)
    library.jump.argtypes = (ctypes.c_long,)
    return library


def run(seconds: float, first_seed: int, most: int | None, syncs: bool = True) -> Tally:
    """Faults of all kinds for so long, or so many of each kind."""
    tally, end, seed = Tally(), time.monotonic() + seconds, first_seed
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end and (most is None or seed == first_seed):
            work = Path(folder) / str(seed)
            cuts(tally, seed, 8, work, end, most or 1 << 30, syncs)
            refusals(tally, seed, 8, work, end, most or 100)
            damage(tally, seed, 12, work, end, most or 100)
            live_logs(tally, seed, 12, work, end, most or 100)
            clocks(tally, seed, 12, work, end, most or 100)
            small_disk(tally, seed, 12, work, end, most or 100)
            shutil.rmtree(work, ignore_errors=True)
            print(f"seed {seed}: {sum(tally.faults.values()):,} faults, {len(tally.wrong)} wrong", file=sys.stderr)
            seed += 1
    return tally


def with_recorder(arguments: list[str]) -> int:
    """This program again, with the recording library loaded before libc."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "record.so"
        source = Path(__file__).with_name("record.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), LIBRARY: str(library)}
        return subprocess.run([sys.executable, __file__, *arguments], env=environment).returncode


def main() -> int:
    if LIBRARY not in os.environ:
        return with_recorder(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=None, help="so many operations of each kind, of one seed")
    parser.add_argument("--no-fsync", action="store_true", help="a control: of such disks wrong stores must be found")
    given = parser.parse_args()
    tally = run(given.seconds, given.seed, given.each, not given.no_fsync)
    print("| fault | times | told as damage | wrong |\n|---|---|---|---|")
    for kind, times in sorted(tally.faults.items()):
        wrong = sum(line.startswith(f"{kind}, seed") for line in tally.wrong)
        print(f"| {kind} | {times:,} | {tally.told[kind]:,} | {wrong} |")
    print(f"\n{sum(tally.faults.values()):,} faults from seed {given.seed} on")
    for line in tally.wrong:
        print(line)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
