"""Does the demo's pipeline find what is there, and nothing where nothing is?

Runs ``genebold demo`` over fixed seeds in the three simulated worlds, one process a run, plus
feature-level null replicates, and writes a dated table to benchmarks/results.

    python benchmarks/worlds.py            # the whole table, within the hour on 2 cores
    python benchmarks/worlds.py --short    # one seed a world; nothing is written
    python benchmarks/worlds.py --genotypes VCF --reference FASTA    # planted on real haplotypes
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe_commit, describe_machine

RESULTS = Path(__file__).parent / "results"
SEEDS = {"signal": range(100, 110), "null": range(200, 220), "confounded": range(300, 310)}
REAL_SEEDS = {"signal": range(3), "null": range(5)}
REPLICATES, REPLICATE_SEED = 1000, 400
# What is wanted, the world, the gallery, the bound on p, and the share of runs: at least that share
# below 0.01, at most that share below 0.05.
REQUIREMENTS = [
    ("signal: matched p <= 0.01 in at least 9 of 10", "signal", "matched", 0.01, 0.9),
    ("null: matched p < 0.05 in at most 1 of 5", "null", "matched", 0.05, 0.2),
    ("confounded: raw p <= 0.01 in at least 8 of 10", "confounded", "raw", 0.01, 0.8),
    ("confounded: matched p < 0.05 in at most 2 of 10", "confounded", "matched", 0.05, 0.2),
]
DEMO = [sys.executable, "-m", "multimodal.cli", "demo"]


@dataclass(frozen=True)
class Run:
    """One finished demo."""

    world: str
    seed: int
    metrics: dict[str, Any]
    seconds: float
    peak_mib: float

    def p(self, gallery: str) -> float:
        return self.metrics["permutation"][gallery]["p"]

    def statistic(self, gallery: str) -> float:
        return self.metrics["permutation"][gallery]["statistic"]


def run_demo(world: str, seed: int, extra: list[str]) -> Run:
    """Run one demo in a folder of its own, and measure it."""
    folder = Path(tempfile.mkdtemp(prefix=f"genebold-{world}-{seed}-"))
    log = folder / "log.txt"
    words = [f"run_dir={folder / 'run'}", f"cohort.world={world}", f"cohort.seed={seed}", *extra]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*DEMO, *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread},
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{world} {seed} failed:\n{log.read_text()[-3000:]}")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    shutil.rmtree(folder)
    peak_kib = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss / 1024
    return Run(world, seed, metrics, seconds, peak_kib / 1024)


def verdicts(runs: list[Run], rejected: float | None) -> list[tuple[str, str, bool]]:
    """Return each requirement with what was found and whether it holds."""
    rows = []
    for what, world, gallery, bound, share in REQUIREMENTS:
        of = [run for run in runs if run.world == world]
        if not of:
            continue
        low = bound == 0.01
        hits = sum(run.p(gallery) <= bound if low else run.p(gallery) < bound for run in of)
        holds = hits >= share * len(of) if low else hits <= share * len(of)
        rows.append((what, f"{hits} of {len(of)}", holds))
    controls = [run.metrics["controls"]["reference_genome"]["permutation"] for run in runs]
    tied = all(
        control[gallery]["statistic"] == 0.5 and control[gallery]["p"] == 1.0
        for control in controls
        for gallery in ("raw", "matched")
    )
    what = "reference genome for everybody: percentile exactly 0.5, p = 1"
    rows.append((what, f"{len(runs)} runs", tied))
    if rejected is not None:
        what = "null replicates of features, rejected at 0.05: 3.6 to 6.4%"
        rows.append((what, f"{100 * rejected:.1f}%", 0.036 <= rejected <= 0.064))
    return rows


def report(
    runs: list[Run], rejected: float | None, seconds: float, title: str, command: str
) -> str:
    """Return the table as Markdown."""
    null = (
        ""
        if rejected is None
        else f" Null replicates: {REPLICATES} of features with families and strata, seed "
        f"{REPLICATE_SEED}."
    )
    lines = [
        f"# {title}, {datetime.date.today().isoformat()}",
        "",
        f"`{command}` at {describe_commit()}, {describe_machine()};",
        "seeds fixed beforehand, two runs side by side, one thread each;",
        f"{seconds / 60:.0f} minutes in all. Peak memory is a run's own process,",
        "imports included. Percentile: mean rank percentile over both directions, chance 0.5.",
        f"A run is the whole demo, simulating and all.{null}",
        "",
        "| requirement | found | holds |",
        "|---|---|---|",
        *(
            f"| {what} | {found} | {'yes' if holds else 'NO'} |"
            for what, found, holds in verdicts(runs, rejected)
        ),
        "",
        "| world | seed | raw percentile | raw p | matched percentile | matched p "
        "| covariates matched p | matched n | seconds | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(run) for run in runs),
        "",
    ]
    return "\n".join(lines)


def _row(run: Run) -> str:
    control = run.metrics["controls"]["covariates_only"]["permutation"]["matched"]["p"]
    matched_n = run.metrics["galleries"]["matched"]["subjects"]
    return (
        f"| {run.world} | {run.seed} | {run.statistic('raw'):.3f} | {run.p('raw'):.4f} "
        f"| {run.statistic('matched'):.3f} | {run.p('matched'):.4f} | {control:.3f} | {matched_n} "
        f"| {run.seconds:.0f} | {run.peak_mib:.0f} |"
    )


def run_all(
    tasks: list[tuple[str, int]], extra: list[str], jobs: int
) -> tuple[list[Run], list[str]]:
    """Run the demos, printing a row as each ends; return them, and what failed."""
    runs, failed = [], []
    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(run_demo, world, seed, extra) for world, seed in tasks]:
            try:
                runs.append(future.result())
            except (RuntimeError, OSError, ValueError) as error:
                failed.append(str(error))
                print(f"FAILED {error}", flush=True)
            else:
                print(_row(runs[-1]), flush=True)
    return runs, failed


def main() -> int:
    """Run, print and (unless short) write the table; the exit code says whether all holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one seed a world, nothing written")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--genotypes", help="plant the worlds on this VCF's haplotypes")
    parser.add_argument("--reference", help="its FASTA")
    parser.add_argument("extra", nargs="*", help="further overrides of the demo")
    arguments = parser.parse_args()
    real = arguments.genotypes is not None
    extra = list(arguments.extra)
    command, name, title = (
        "python benchmarks/worlds.py",
        "worlds",
        "The demo's pipeline in three worlds",
    )
    if real:
        files = [("genotypes", arguments.genotypes), ("reference", arguments.reference)]
        extra += [f"cohort.{key}={Path(path).absolute()}" for key, path in files]
        command += "".join(f" --{key} {Path(path).name}" for key, path in files)
        name, title = "worlds-real-haplotypes", "The demo's pipeline on real haplotypes"
    seeds = REAL_SEEDS if real else SEEDS
    kept = slice(1) if arguments.short else slice(None)
    tasks = [(world, seed) for world, of in seeds.items() for seed in list(of)[kept]]
    start = time.perf_counter()
    runs, failed = run_all(tasks, extra, arguments.jobs)
    rejected = None
    if not real and not arguments.short:
        from multimodal.evaluate.replicates import null_replicates

        rejected = null_replicates(REPLICATES, seed=REPLICATE_SEED).rejection_rate(0.05)
    seconds = time.perf_counter() - start
    command += "".join(f" {word}" for word in arguments.extra)
    text = report(runs, rejected, seconds, title, command)
    if failed:
        text += f"\n{len(failed)} runs failed and are not in the table.\n"
    print(text)
    if not arguments.short:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{datetime.date.today().isoformat()}.md").write_text(text)
    held = arguments.short or all(holds for _, _, holds in verdicts(runs, rejected))
    return 0 if held and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
