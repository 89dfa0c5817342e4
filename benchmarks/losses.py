"""Peak memory and time of the losses, value and gradients, whole and in chunks.

Every figure is a process of its own: how far its peak resident memory rises above what it held with
the latents made, and the seconds of the same forward and backward pass. The plain form of InfoNCE
holds the matrix of all pairs; the chunked forms hold some rows of it at a time.

    python benchmarks/losses.py                    # batches to 32,768, and the table in results
    python benchmarks/losses.py --rows 2048 8192   # these; nothing is written
    python benchmarks/losses.py --losses siglip nt_xent --rows 8192
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from peak import peak_mib
from tables import heading, markdown, publish
from torch import Tensor

from multimodal.align.options import AlignOptions

ROWS = (8192, 16384, 32768)
DIM, SCALE, FAMILY = 512, 14.0, 4
# As training does unless told otherwise.
CHUNK_ROWS = AlignOptions().chunk_rows
# How many times less memory is asked for, and at which batch.
WANTED_RATIO, WANTED_ROWS = 8, 32768
LOSSES = ("info_nce", "siglip", "debiased", "soft_target", "nt_xent")
FORMS = ("plain", "chunked")


def main() -> int:
    """Measure each loss, batch and form in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="*", default=["info_nce"], choices=LOSSES)
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS), help="batch sizes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-gib", type=float, default=22, help="memory a process may take")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        loss, form, rows = chosen.measure
        print(json.dumps(_measure(loss, form, int(rows), chosen.threads, chosen.limit_gib)))
        return 0
    table = []
    for loss in chosen.losses:
        for rows in chosen.rows:
            found = {form: _in_process(loss, form, rows, chosen) for form in FORMS}
            table.append(_row(loss, rows, found))
            print(" | ".join(table[-1]), flush=True)
    header = ["loss", "rows", *FORMS, "memory, plain / chunked", "gradients differ by"]
    lines = heading("Memory and time of the losses", _notes(chosen.threads))
    publish("losses", [*lines, *markdown(header, table)], write=chosen.rows == list(ROWS))
    return 0


def _in_process(
    loss: str, form: str, rows: int, chosen: argparse.Namespace
) -> dict[str, Any] | None:
    """Return what was measured; None where the memory was not enough."""
    command = [sys.executable, __file__, "--measure", loss, form, str(rows)]
    command += ["--threads", str(chosen.threads), "--limit-gib", str(chosen.limit_gib)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode == 0:
        measured: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return measured
    if "memory" in ended.stderr.lower() or ended.returncode < 0:
        return None
    raise RuntimeError(f"{loss}, {form}, {rows} rows: {ended.stderr.strip().splitlines()[-1]}")


def _measure(loss: str, form: str, rows: int, threads: int, limit_gib: float) -> dict[str, Any]:
    torch.set_num_threads(threads)
    limit = int(limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(2, rows, DIM, generator=generator)
    gene, brain = (side.requires_grad_() for side in torch.nn.functional.normalize(sides, dim=2))
    scale = torch.tensor(SCALE, requires_grad=True)
    component = torch.arange(rows) // FAMILY
    chunk_rows = CHUNK_ROWS if form == "chunked" else None
    before = peak_mib(reset=True)
    start = time.perf_counter()
    value = _loss(loss, gene, brain, scale, component, chunk_rows)
    value.backward()
    seconds = time.perf_counter() - start
    assert gene.grad is not None
    weights = torch.randn(DIM, generator=generator)
    return {
        "mib": peak_mib() - before,
        "seconds": seconds,
        "value": value.item(),
        "gradient": (gene.grad @ weights)[:: max(1, rows // 64)].tolist(),
    }


def _loss(
    name: str, gene: Tensor, brain: Tensor, scale: Tensor, component: Tensor, chunk: int | None
) -> Tensor:
    from multimodal.align import losses

    if name == "siglip":
        return losses.siglip(gene, brain, scale, -10.0, component, chunk_rows=chunk)
    if name == "debiased":
        return losses.debiased_info_nce(
            gene, brain, scale, component, positive_share=0.05, chunk_rows=chunk
        )
    if name == "soft_target":
        first = torch.arange(0, len(gene) - 1, FAMILY)
        pairs = torch.stack([first, first + 1], dim=1)
        kinship = losses.Kinship(pairs, torch.full((len(pairs),), 0.25))
        return losses.soft_target_info_nce(
            gene, brain, scale, component, kinship, kinship_weight=0.5, chunk_rows=chunk
        )
    both = {"info_nce": losses.info_nce, "nt_xent": losses.nt_xent}
    return both[name](gene, brain, scale, component, chunk_rows=chunk)


def _row(loss: str, rows: int, found: dict[str, dict[str, Any] | None]) -> list[str]:
    cells = [_cell(each) for each in found.values()]
    ratio = difference = "-"
    if found["plain"] and found["chunked"]:
        times = found["plain"]["mib"] / found["chunked"]["mib"]
        ratio = f"{times:.1f}"
        if loss == "info_nce" and rows == WANTED_ROWS:
            met = "met" if times >= WANTED_RATIO else "not met"
            ratio += f" (at least {WANTED_RATIO}: {met})"
        pair = [torch.tensor(found[form]["gradient"]) for form in FORMS]
        difference = f"{float((pair[0] - pair[1]).norm() / pair[0].norm()):.0e}"
    return [loss, f"{rows:,}", *cells, ratio, difference]


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not within the limit"
    return f"{found['mib']:,.0f} MiB, {found['seconds']:.1f} s"


def _notes(threads: int) -> list[str]:
    return [
        f"Float32 latents of {DIM} dimensions, families of {FAMILY}, {threads} threads, chunks of",
        f"{CHUNK_ROWS:,} rows; value and gradients, a single run each. MiB that a process's peak",
        "rises above its latents. The plain form of the losses other than info_nce is a single",
        "chunk, which keeps nothing for the backward pass. Gradients: relative, of the genes.",
    ]


if __name__ == "__main__":
    sys.exit(main())
