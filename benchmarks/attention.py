"""Brain encoders: fused attention beside the plain form, BrainMT's stem beside the usual layout.

One thread, float32, batch of one, random weights of the published sizes. Times are medians of
rounds in which each form runs once. Every memory figure is a process of its own: how far its peak
resident memory rises above what it held with network and input made, freed blocks given back to the
system at once (``MALLOC_MMAP_THRESHOLD_``). A step is a forward and the backward pass through a
squared sum, gradients of all weights included. All forms are checked to give the same numbers.

    python benchmarks/attention.py            # all, and the table in benchmarks/results
    python benchmarks/attention.py --short    # small inputs, one round; nothing is written
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from peak import peak_mib
from tables import heading, markdown, publish
from timing import Timed, median_seconds, timed
from torch import Tensor

from encoders import load_encoder
from encoders.base import BrainEncoder, ParcelInput, VolumeInput
from encoders.brainmt import layers, model
from encoders.brainmt.model import BrainMT

OURS = "ours"
MODES = ("forward", "step")
AGREES = 1e-4
ONE_PROCESS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**16),
}


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: float
) -> Tensor:
    """Softmax attention written out: every score is stored, and kept for gradients."""
    scores = query * query.shape[-1] ** -0.5 @ key.mT
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


# What is exchanged for each form; nothing for ours.
Patches = list[tuple[Any, str, Any]]
ATTENTION: dict[str, Patches] = {
    "plain attention": [(F, "scaled_dot_product_attention", plain_attention)],
    OURS: [],
}
USUAL_LAYOUT = (layers, "lay_out", lambda maps: maps)
STEM: dict[str, Patches] = {
    "channels first, nine frames at once": [USUAL_LAYOUT, (model, "_STEM_VOXELS", 2**23)],
    "channels first": [USUAL_LAYOUT],
    OURS: [],
}


@dataclass(frozen=True)
class Case:
    """One network: its arguments at full and at small size, and the forms it is run in."""

    encoder: str
    forms: dict[str, Patches]
    full: dict[str, Any] = field(default_factory=dict)
    short: dict[str, Any] = field(default_factory=dict)


CASES = {
    "SwiFT": Case("swift", ATTENTION, short={"img_size": [48, 48, 48, 8]}),
    "BrainLM 111M": Case("brainlm_vitmae", ATTENTION, short={"num_hidden_layers": 1}),
    "BrainLM 13M": Case("brainlm_nystromformer", ATTENTION, short={"num_hidden_layers": 1}),
    # Its stem and embeddings alone are run: the layers after them take hours.
    "BrainMT's stem": Case(
        "brainmt",
        STEM,
        full={"depth": [1, 1], "num_frames": 9},
        short={"depth": [1, 1], "num_frames": 2, "img_size": [46, 55, 46]},
    ),
}


class Work:
    """A network with an input of its size, to be run in any form.

    Parameters
    ----------
    case : Case
    short : bool
        Whether to take the small size.
    """

    def __init__(self, case: Case, short: bool) -> None:
        encoder = load_encoder(case.encoder, config=case.short if short else case.full)
        assert isinstance(encoder, BrainEncoder)
        self.encoder = encoder
        wanted = encoder.spec.input
        generator = torch.Generator().manual_seed(0)
        self.given: tuple[Tensor, ...]
        if isinstance(wanted, ParcelInput):
            parcels, frames = wanted.parcels or 424, wanted.frames or 200
            signal = torch.randn(1, parcels, frames, generator=generator)
            xyz = torch.randn(1, parcels, 3, generator=generator)
            self.given = (signal, xyz) if wanted.needs_xyz else (signal,)
            self.input = f"{parcels} parcels, {frames} frames"
        else:
            assert isinstance(wanted, VolumeInput)
            shape = (1, 1, *wanted.shape, wanted.frames)
            self.given = (torch.randn(shape, generator=generator),)
            voxels = " x ".join(map(str, wanted.shape))
            self.input = f"{voxels} voxels, {wanted.frames} frames"

    def run(self, mode: str) -> Tensor:
        """Run a forward, or forward and backward; return the output."""
        self.encoder.requires_grad_(mode == "step")
        self.encoder.zero_grad()
        with torch.set_grad_enabled(mode == "step"):
            backbone = self.encoder.backbone
            if isinstance(backbone, BrainMT):
                output = backbone.embed(self.given[0].permute(0, 5, 1, 3, 2, 4))
            else:
                output = self.encoder(*self.given)
        if mode == "step":
            output.square().sum().backward()
        return output.detach()


@contextmanager
def exchanged(patches: Patches) -> Iterator[None]:
    """Run what is inside with parts of the networks exchanged for others."""
    with ExitStack() as stack:
        for owner, name, other in patches:
            stack.enter_context(patch.object(owner, name, other))
        yield


def in_form(work: Work, patches: Patches, mode: str) -> Callable[[], Tensor]:
    """Return one run of a network in one form."""

    def run() -> Tensor:
        with exchanged(patches):
            return work.run(mode)

    return run


def check_agreement(name: str, work: Work, forms: dict[str, Patches]) -> None:
    """Raise RuntimeError if a form gives other numbers than ours."""
    wanted = work.run("forward")
    for form, patches in forms.items():
        apart = float((in_form(work, patches, "forward")() - wanted).norm() / wanted.norm())
        if not apart <= AGREES:
            raise RuntimeError(f"{name}, {form}: differs from ours by {apart:.1e}")


def memory_mib(name: str, form: str, mode: str, *, short: bool) -> float:
    """Measure the peak of one run in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, form, mode]
    ended = subprocess.run(
        [*command, *(["--short"] if short else [])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **ONE_PROCESS},
    )
    return float(json.loads(ended.stdout.splitlines()[-1]))


def measure_memory(name: str, form: str, mode: str, *, short: bool) -> float:
    """Run one form once, in this process; return how far the peak rose, in MiB."""
    case = CASES[name]
    run = in_form(Work(case, short), case.forms[form], mode)
    before = peak_mib(reset=True)
    run()
    return peak_mib() - before


def measure(name: str, *, rounds: int, short: bool) -> list[list[str]]:
    """Return a network's rows of the table: one a form, ours last."""
    case = CASES[name]
    work = Work(case, short)
    check_agreement(name, work, case.forms)
    seconds = {}
    for mode in MODES:
        runs: dict[str, Timed] = {
            form: timed(in_form(work, patches, mode)) for form, patches in case.forms.items()
        }
        seconds[mode] = median_seconds(runs, rounds)
    rows = []
    for form in case.forms:
        cells = [f"{name}, {work.input}", form]
        for mode in MODES:
            taken, ours = seconds[mode][form], seconds[mode][OURS]
            ratio = "" if form == OURS else f" ({taken / ours:.2f} times ours)"
            peak = memory_mib(name, form, mode, short=short)
            cells += [f"{taken:.3f} s{ratio}", f"{peak:,.0f} MiB"]
        rows.append(cells)
        print(*cells, sep=" | ", flush=True)
    return rows


def main() -> int:
    """Measure all networks, print and (in full) write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small inputs; nothing is written")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        name, form, mode = arguments.measure
        print(json.dumps(measure_memory(name, form, mode, short=arguments.short)))
        return 0
    rounds = 1 if arguments.short else 3
    names = ["SwiFT", "BrainMT's stem"] if arguments.short else list(CASES)
    rows = [row for name in names for row in measure(name, rounds=rounds, short=arguments.short)]
    notes = [
        f"float32, batch of one, one thread, random weights; medians of {rounds} rounds, each peak",
        "a process of its own, above network and input. A step is a forward and a backward pass.",
    ]
    header = ["network", "form", "forward", "peak", "step", "peak"]
    lines = [*heading("Attention and the stem of the brain encoders", notes)]
    publish("attention", [*lines, *markdown(header, rows)], write=not arguments.short)
    return 0


if __name__ == "__main__":
    sys.exit(main())
