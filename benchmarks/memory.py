"""Peak memory of each encoder at its published size: a forward, and a training step.

Every figure is a process of its own: how far its peak resident memory rises above what it held with
the network built and the input made, batch of one, one thread. The step is the backward pass
through a squared sum of the features, with and without gradient checkpointing.

    python benchmarks/memory.py                    # all, and the table in benchmarks/results
    python benchmarks/memory.py swift caduceus_ps  # these; nothing is written
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe_commit, describe_machine
from peak import peak_mib

RESULTS = Path(__file__).parent / "results"
# Length in bases of the DNA window, where the published 131,072 would only take longer.
LENGTH_BP = 4096
PUBLISHED = {
    "caduceus_ps": ("caduceus_ps", {}),
    "caduceus_ph": ("caduceus_ph", {}),
    "brainlm_nystromformer (13M)": ("brainlm_nystromformer", {}),
    "brainlm_vitmae (111M)": ("brainlm_vitmae", {}),
    "swift": ("swift", {}),
    "brainmt": ("brainmt", {}),
}
MODES = ("forward", "step", "step, checkpointed")


def main() -> int:
    """Measure each encoder and mode in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows; by default all")
    parser.add_argument("--limit-s", type=float, default=900, help="seconds a measurement may take")
    parser.add_argument("--limit-gib", type=int, default=20, help="memory a measurement may take")
    parser.add_argument("--kept", type=Path, help="file of measurements: taken up, and added to")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(_measure(*arguments.measure, arguments.limit_gib)))
        return 0
    kept = _Kept(arguments.kept)
    rows = []
    for name in arguments.names or PUBLISHED:
        for mode in MODES:
            if (name, mode) not in kept.found:
                kept.add(name, mode, _in_process(name, mode, arguments))
        rows.append((name, {mode: kept.found[name, mode] for mode in MODES}))
    text = _report(rows)
    print(text)
    if not arguments.names:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"memory-{datetime.date.today().isoformat()}.md").write_text(text)
    return 0


class _Kept:
    """Measurements so far; in a file, one a line, the long ones need not be made in one go."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: dict[tuple[str, str], dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                name, mode, found = json.loads(line)
                self.found[name, mode] = found

    def add(self, name: str, mode: str, found: dict[str, Any]) -> None:
        """Take up a measurement, and which code it is of."""
        found = {**found, "commit": describe_commit()}
        print(name, mode, found, flush=True)
        self.found[name, mode] = found
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps([name, mode, found]) + "\n")


def _in_process(name: str, mode: str, limits: argparse.Namespace) -> dict[str, Any]:
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(
            [
                sys.executable,
                __file__,
                "--limit-gib",
                str(limits.limit_gib),
                "--measure",
                name,
                mode,
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **one_thread},
            timeout=limits.limit_s,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not within {limits.limit_s:g} s"}
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"ended with {ended.returncode}"
        if "memory" in reason.lower():
            return {"failed": f"not within {limits.limit_gib} GiB"}
        raise RuntimeError(f"{name}, {mode}: {reason}")
    return json.loads(ended.stdout.splitlines()[-1])


def _measure(name: str, mode: str, limit_gib: int) -> dict[str, Any]:
    from encoders import load_encoder

    resource.setrlimit(resource.RLIMIT_DATA, (limit_gib * 2**30, limit_gib * 2**30))
    encoder_name, config = PUBLISHED[name]
    encoder = load_encoder(encoder_name, config=config or None)
    given, what = _input(encoder)
    # Loaded by a process' first checkpoint, or optimiser: no encoder's own.
    import torch._dynamo

    training = mode != "forward"
    encoder.requires_grad_(training)
    if mode == "step, checkpointed":
        encoder.gradient_checkpointing(True)
    before = peak_mib(reset=True)
    start = time.perf_counter()
    with torch.set_grad_enabled(training):
        features = encoder(*given)
    if training:
        features.square().sum().backward()
    seconds = time.perf_counter() - start
    return {
        "mib": peak_mib() - before,
        "seconds": seconds,
        "input": what,
        "parameters": encoder.spec.parameters,
    }


def _input(encoder: Any) -> tuple[tuple[Any, ...], str]:
    wanted = encoder.spec.input
    generator = torch.Generator().manual_seed(0)
    if encoder.spec.modality == "dna":
        letters = torch.randint(0, 4, (LENGTH_BP,), generator=generator).tolist()
        tokens = encoder.tokenize(["".join("ACGT"[letter] for letter in letters)])
        return tuple(tokens), f"{LENGTH_BP:,} bp"
    if hasattr(wanted, "parcels"):
        shape = (1, wanted.parcels or 424, wanted.frames or 200)
        xyz = (torch.randn(1, shape[1], 3, generator=generator),) if wanted.needs_xyz else ()
        signal = torch.randn(shape, generator=generator)
        return (signal, *xyz), f"{shape[1]} parcels, {shape[2]} frames"
    shape = (1, 1, *wanted.shape, wanted.frames)
    grid = " x ".join(map(str, wanted.shape))
    return (torch.randn(shape, generator=generator),), f"{grid} voxels, {wanted.frames} frames"


def _report(rows: list[tuple[str, dict[str, dict[str, Any]]]]) -> str:
    lines = [
        f"# Memory of the encoders at published size, {datetime.date.today().isoformat()}",
        "",
        f"`{' '.join(['python', *sys.argv])}` at {describe_commit()},",
        f"{describe_machine()},",
        f"torch {torch.__version__}; float32, batch of one, one thread, random weights. MiB that a",
        "process's peak rises above the network and its input, and seconds, a single run each; a",
        "step's figure includes the gradients of all parameters (4 bytes each).",
        "",
        "| encoder | parameters | input | forward | step | step, gradient checkpointing |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in rows:
        done = next((part for part in found.values() if "mib" in part), {})
        cells = [_cell(found[mode]) for mode in MODES]
        parameters = f"{done['parameters']:,}" if done else ""
        lines.append(f"| {name} | {parameters} | {done.get('input', '')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_earlier(rows), _counted(), ""])


def _earlier(rows: list[tuple[str, dict[str, dict[str, Any]]]]) -> list[str]:
    """Say which figures another commit's code gave."""
    now = describe_commit()
    return [
        f"{name}, {mode}: measured at {part['commit']}.\n"
        for name, found in rows
        for mode, part in found.items()
        if part["commit"] != now
    ]


def _cell(found: dict[str, Any]) -> str:
    if "failed" in found:
        return found["failed"]
    return f"{found['mib']:,.0f} MiB, {found['seconds']:.1f} s"


def _counted() -> str:
    stored = 658_337_868
    return (
        f"BrainLM 650M is counted, not run: its {stored:,} stored numbers take "
        f"{stored * 4 / 2**20:,.0f} MiB in float32, and as much again for gradients."
    )


if __name__ == "__main__":
    sys.exit(main())
