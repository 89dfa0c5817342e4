"""Where the demo's time goes, and what the scan's backend does to its encode stage.

Runs `genebold demo` once, with timers around the parts of encoding genomes. Then encodes the same
genomes again, each time into an empty store and each way in a process of its own: with the native
kernels, with the torch backend, and with the code in which the torch backend was first used, out of
the repository's history. Behind the first way the network's products and scans are timed by
themselves, for as many bases: what it cannot do without.

    python benchmarks/encode_stage.py            # all, and the table in benchmarks/results
    python benchmarks/encode_stage.py --short    # 40 people, one round; nothing is written
"""

import argparse
import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The verbs' first commit: the torch backend as it was first used.
FIRST_VERSION = "58d6499"
BOUND = 10
ROUNDS = 5
SHORT_OVERRIDES = ["cohort.subjects=40", "evaluation.folds=2", "align.epochs=4"]
# What is timed while genomes are encoded: name, module, and the function or method there.
PARTS = (
    ("reading genotypes", "multimodal.features.dna", "DnaPlan.survey"),
    ("tokens", "encoders.caduceus.encoder", "CaduceusEncoder.tokenize"),
    ("network", "encoders.caduceus.encoder", "CaduceusEncoder.forward"),
    ("pooling", "encoders.caduceus.encoder", "pool_bases"),
    ("writing", "multimodal.features.writer", "StoreWriter.write"),
    ("writing", "multimodal.features.writer", "StoreWriter.finish"),
)
ENCODING = ("multimodal.verbs.pipeline", "Preparation.encode_dna")
NATIVE = "native kernels"
BACKENDS = {NATIVE: "cpu", "torch backend": "torch"}
FLOOR, WHOLE = "its products and scans alone", "whole"


class Stopwatch:
    """Seconds by part: each its own, what it calls of the others taken out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def around(self, name: str, work: Callable[..., Any], *, outermost: bool) -> Callable[..., Any]:
        """Return `work` with a timer around it.

        Parameters
        ----------
        name : str
        work : callable
        outermost : bool
            Whether timing starts here; the other parts count only inside of it.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            counts = outermost or bool(self._inner)
            if not counts or threading.current_thread() is not threading.main_thread():
                return work(*args, **kwargs)
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                self.seconds[name] += taken - self._inner.pop()
                if self._inner:
                    self._inner[-1] += taken

        return run

    def put(self, name: str, module: str, target: str, *, outermost: bool = False) -> None:
        """Put a timer around a function or method; leave out what is not there."""
        owner: Any = importlib.import_module(module)
        *classes, function = target.split(".")
        for part in classes:
            owner = getattr(owner, part)
        if hasattr(owner, function):
            work = getattr(owner, function)
            setattr(owner, function, self.around(name, work, outermost=outermost))


def run_verb(verb: str, overrides: list[str], *, floor: bool) -> dict[str, float]:
    """Run a verb here and return the seconds of the parts of encoding genomes, and of all."""
    from multimodal.cli import main as genebold

    encoded = Encoded() if floor else None
    watch = Stopwatch()
    watch.put("the rest of encoding", *ENCODING, outermost=True)
    for part in PARTS:
        watch.put(*part)
    start = time.perf_counter()
    code = genebold([verb, *overrides])
    if code != 0:
        raise RuntimeError(f"genebold {verb} ended with {code}")
    found = {**watch.seconds, WHOLE: time.perf_counter() - start}
    return found if encoded is None else {**found, FLOOR: encoded.floor_seconds()}


class Encoded:
    """Remembers which network ran, and how many bases it was given, by length of their windows."""

    def __init__(self) -> None:
        from encoders.caduceus.encoder import CaduceusEncoder

        self.encoder: Any = None
        self.windows: dict[int, int] = defaultdict(int)
        plain = CaduceusEncoder.forward

        def forward(encoder: Any, input_ids: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            self.encoder = encoder
            for length in mask.sum(dim=1).tolist():
                self.windows[length] += 1
            return plain(encoder, input_ids, mask, *rest, **named)

        CaduceusEncoder.forward = forward  # type: ignore[method-assign]

    def floor_seconds(self) -> float:
        """Return the seconds of the products and scans alone."""
        from floor import floor_seconds

        bases = sum(length * count for length, count in self.windows.items())
        usual = max(self.windows, key=lambda length: self.windows[length])
        return floor_seconds(self.encoder, usual, windows=round(bases / usual))


def in_process(
    verb: str,
    overrides: list[str],
    *,
    backend: str = "",
    code: Path = ROOT,
    floor: bool = False,
) -> dict[str, float]:
    """Run a verb in a process of its own, with a backend or with other code."""
    environment = {**os.environ, "PYTHONPATH": str(code)}
    if backend:
        environment["GENEBOLD_SCAN_BACKEND"] = backend
    ended = subprocess.run(
        [sys.executable, __file__, "--verb", json.dumps([floor, verb, *overrides])],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=code,
    )
    if ended.returncode != 0:
        told = f"{ended.stdout[-1000:]}\n{ended.stderr[-2000:]}"
        raise RuntimeError(f"genebold {verb} ended with {ended.returncode}:\n{told}")
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def encode_again(
    folder: Path, name: str, rounds: int, *, backend: str = "", code: Path = ROOT
) -> dict[str, float]:
    """Encode the demo's genomes into empty stores; return the median seconds of each part.

    The first run of a process pays for what torch sets up once, as the demo's does.
    """
    runs = []
    for number in range(rounds):
        store = folder / f"features-{name.replace(' ', '-')}-{number}"
        words = [f"run_dir={folder / 'run'}", f"features.dir={store}", "sides=[dna]"]
        floor = name == NATIVE
        runs.append(in_process("encode", words, backend=backend, code=code, floor=floor))
    parts = dict.fromkeys(part for run in runs for part in run)
    return {part: statistics.median(run.get(part, 0.0) for run in runs) for part in parts}


def first_version(folder: Path) -> Path | None:
    """Unpack the code in which the torch backend was first used; None where it is not at hand."""
    archive = subprocess.run(
        ["git", "archive", FIRST_VERSION], capture_output=True, check=False, cwd=ROOT
    )
    if archive.returncode != 0:
        return None
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def encoding_seconds(parts: dict[str, float]) -> float:
    """Return the seconds of encoding genomes as a whole."""
    return sum(seconds for name, seconds in parts.items() if name not in (WHOLE, FLOOR))


def verbs_table(stages: dict[str, float], whole: float) -> list[str]:
    """Show the demo's stages by their share of its time."""
    from tables import markdown

    rest = {"between stages, imports": whole - sum(stages.values())}
    rows = [
        [name, f"{seconds:,.2f}", f"{100 * seconds / whole:.0f}%"]
        for name, seconds in {**stages, **rest, "whole demo": whole}.items()
    ]
    return ["## The demo", "", *markdown(["stage", "seconds", "share"], rows)]


def parts_table(ways: dict[str, dict[str, float]]) -> list[str]:
    """Show what each way of encoding spends where, and how many times faster it is."""
    from tables import at_least, markdown

    names = dict.fromkeys([*(part[0] for part in PARTS), "the rest of encoding"])
    rows = []
    for name in names:
        cells = [f"{parts[name]:,.2f}" if name in parts else "" for parts in ways.values()]
        rows.append([name, *cells])
    totals = {way: encoding_seconds(parts) for way, parts in ways.items()}
    rows.append(["encoding genomes", *(f"{total:,.2f}" for total in totals.values())])
    fastest, slowest = totals[NATIVE], list(totals)[-1]
    told = [
        at_least(total / fastest, BOUND) if way == slowest else f"{total / fastest:.1f} times"
        for way, total in totals.items()
    ]
    rows.append(["native kernels faster by", *told])
    networks = {way: parts.get("network", 0.0) for way, parts in ways.items()}
    own, floor = networks[NATIVE], ways[NATIVE][FLOOR]
    rows.append(["its network alone", *(f"{taken / own:.1f} times" for taken in networks.values())])
    rows.append([FLOOR, f"{floor:.2f}", *[""] * (len(ways) - 1)])
    least = fastest - own + floor
    most = [f"{total / least:.1f} times" for total in totals.values()]
    rows.append(["faster by, if it took no more than these", *most])
    return ["## Encoding genomes, seconds", "", *markdown(["part", *ways], rows)]


def run_all(overrides: list[str], rounds: int) -> tuple[list[str], list[str]]:
    """Run the demo and all ways of encoding; return the tables' lines, and remarks."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = in_process("demo", [f"run_dir={folder / 'run'}", *overrides])[WHOLE]
        stages = json.loads((folder / "run" / "metrics.json").read_text())["stages"]
        ways = {
            name: encode_again(folder, name, rounds, backend=backend)
            for name, backend in BACKENDS.items()
        }
        remarks = []
        code = first_version(folder / "first")
        if code is None:
            remarks.append(f"The torch backend's first version ({FIRST_VERSION}) is not in here.")
        else:
            way = f"torch backend, first version ({FIRST_VERSION})"
            ways[way] = encode_again(folder, "first", rounds, code=code)
    return [*verbs_table(stages, whole), *parts_table(ways)], remarks


def main() -> int:
    """Measure, print and (unless short) write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small and quick; nothing is written")
    parser.add_argument("--verb", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.verb:
        floor, verb, *overrides = json.loads(arguments.verb)
        print(json.dumps(run_verb(verb, overrides, floor=floor)))
        return 0
    from tables import heading, publish

    rounds = 1 if arguments.short else ROUNDS
    lines, remarks = run_all(SHORT_OVERRIDES if arguments.short else [], rounds)
    notes = [
        "The demo as it comes (simulated cohort, small Caduceus-PS with random weights), run once; "
        "its genomes",
        f"encoded again into empty stores, median of {rounds}, a process each, with as many "
        "threads as torch takes",
        "by itself. Parts do not hold one another; where pooling is empty it is done within the "
        "network.",
        *remarks,
    ]
    publish(
        "encode-stage", [*heading("The encode stage", notes), *lines], write=not arguments.short
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
