"""Fuzz the programs: python tests/fuzz.py --minutes 10 [--target NAME] [--seed S].

Each target of tests/fuzzing/ runs in its own process. With atheris installed, coverage guides the changes of valid
input; without it, they are random. An input that breaks the promise of tests/fuzzing/promise.py is saved to a file, and
the command that repeats it is printed. The exit code is then 1.
"""

import argparse
import faulthandler
import hashlib
import importlib.util
import mmap
import os
import random
import resource
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

_FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a RAM disk, so that nothing waits for a disk
_HANG = 20  # seconds that an input may take
_MEMORY = 2 << 30  # bytes beyond what the process has when it begins
_LARGEST = 1 << 21  # bytes of an input
_SHOW = 10  # seconds between lines of progress
_HEAD = struct.Struct("<QQQ")  # inputs so far, accepted ones, size of the last one


def main() -> int:
    """Fuzz, or repeat one input; returns 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together [1]")
    parser.add_argument("--target", action="append", metavar="NAME", help="fuzz only this target; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random changes [1]")
    parser.add_argument("--input", type=Path, help="repeat the input in this file; needs exactly one --target")
    parser.add_argument("--random", action="store_true", help="random changes even if atheris is installed")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.target[0], Path(args.worker[0]), float(args.worker[1]), args)
    names = args.target or targets()
    if unknown := sorted(set(names) - set(targets())):
        parser.error(f"--target: there is no {unknown[0]!r}; there are {', '.join(targets())}")
    if args.input:
        with tempfile.TemporaryDirectory() as place:
            return feed_file(names[0], args.input.resolve(), place)
    engine = "random changes" if args.random or not importlib.util.find_spec("atheris") else "atheris"
    print(f"{len(names)} targets, {args.minutes:g} minutes, {engine}", flush=True)
    return max([fuzz(name, args.minutes * 60 / len(names), args) for name in names])


def targets() -> list[str]:
    """The names of all targets."""
    from tests.fuzzing import TARGETS

    return list(TARGETS)


def feed_file(name: str, path: Path, place: str) -> int:
    """Feed the input in a file to a target, in the folder `place`; raises what the target raises."""
    from tests.fuzzing import TARGETS

    os.chdir(place)
    faulthandler.dump_traceback_later(_HANG, exit=True)
    print(f"{name}: {'accepted' if TARGETS[name].feed(path.read_bytes()) else 'refused'}")
    return 0


def fuzz(name: str, seconds: float, args: argparse.Namespace) -> int:
    """Fuzz one target in its own process, showing progress; returns 1 when an input broke the promise."""
    command = [sys.executable, __file__, "--target", name, "--seed", str(args.seed)] + ["--random"] * args.random
    with (
        tempfile.TemporaryDirectory(prefix="espalier-fuzz-", dir=_FAST) as place,
        Record(Path(place, "record"), True) as record,
    ):
        Path(place, "work").mkdir()
        with Path(place, "log").open("wb") as log:
            worker = subprocess.Popen(
                [*command, "--worker", place, str(seconds)], cwd=Path(place, "work"), stdout=log, stderr=log
            )
            began = time.monotonic()
            try:
                while worker.poll() is None:
                    try:
                        worker.wait(_SHOW)
                    except subprocess.TimeoutExpired:
                        print(f"{name:16} {record}, {time.monotonic() - began:.0f} s", flush=True)
            finally:
                worker.kill()
        print(f"{name:16} {record}, {time.monotonic() - began:.0f} s: {'broken' if worker.returncode else 'good'}")
        if worker.returncode:
            bad = Path(f"fuzz-{name}-{hashlib.sha256(record.last).hexdigest()[:8]}").absolute()
            bad.write_bytes(record.last)
            print(Path(place, "log").read_text(errors="replace")[-6000:])
            again = shlex.join([sys.executable, __file__, "--target", name, "--input", str(bad)])
            print(f"exit code {worker.returncode} on the input kept as {bad}; repeat it with:\n{again}", flush=True)
        return int(worker.returncode != 0)


class Record:
    """The number of inputs and the last input, in a memory-mapped file that survives a crash of the process."""

    def __init__(self, path: Path, new: bool):
        with path.open("w+b" if new else "r+b") as file:
            file.truncate(_HEAD.size + _LARGEST)
            self.memory = mmap.mmap(file.fileno(), 0)

    def begin(self, data: bytes) -> None:
        """Record an input before the target gets it."""
        tried, accepted, _ = _HEAD.unpack_from(self.memory)
        self.memory[_HEAD.size : _HEAD.size + len(data)] = data
        _HEAD.pack_into(self.memory, 0, tried + 1, accepted, len(data))

    def end(self, accepted: bool) -> None:
        """Record whether the target accepted it."""
        tried, before, size = _HEAD.unpack_from(self.memory)
        _HEAD.pack_into(self.memory, 0, tried, before + accepted, size)

    @property
    def last(self) -> bytes:
        """The last input."""
        size = _HEAD.unpack_from(self.memory)[2]
        return self.memory[_HEAD.size : _HEAD.size + size]

    def __str__(self) -> str:
        tried, accepted, _ = _HEAD.unpack_from(self.memory)
        return f"{tried:>9,} inputs, {accepted:,} accepted"

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *error: object) -> None:
        self.memory.close()


def work(name: str, place: Path, seconds: float, args: argparse.Namespace) -> int:
    """Fuzz one target in the current folder for `seconds`, or until an input breaks the promise."""
    guided = not args.random and importlib.util.find_spec("atheris")
    if guided:
        import atheris

        with atheris.instrument_imports(include=["lib", "gpt2", "scripts"]):
            from tests import fuzzing
    else:
        from tests import fuzzing
    target, record = fuzzing.TARGETS[name], Record(place / "record", False)
    seeds = target.seeds()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))

    def one(data: bytes) -> None:
        data = data[:_LARGEST]
        record.begin(data)
        faulthandler.dump_traceback_later(_HANG, exit=True)
        record.end(target.feed(data))

    for seed in seeds:
        one(seed)
    if not guided:
        chance, end = random.Random(args.seed), time.monotonic() + seconds
        while time.monotonic() < end:
            one(fuzzing.mutated(chance, seeds))
        return 0
    (place / "corpus").mkdir()
    for number, seed in enumerate(seeds):
        (place / "corpus" / str(number)).write_bytes(seed)

    def mutator(data: bytes, size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        changed = atheris.Mutate(data, size) if chance.random() < 0.3 else fuzzing.mutated(chance, [data, *seeds[:8]])
        return changed[:size]

    flags = [
        f"-max_total_time={seconds:.0f}",
        f"-seed={args.seed}",
        "-max_len=300000",
        "-len_control=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([name, *flags, f"-artifact_prefix={place}/", str(place / "corpus")], one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
