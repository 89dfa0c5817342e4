"""A whole fit in float64, alone or as one of several processes that torchrun starts.

torchrun --standalone --nproc-per-node=N distributed_fit.py OUT [STEP]: rank 1 gets SIGTERM in STEP.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from test_align_interruption import train

from multimodal.align import fit as fitting
from multimodal.align.interruption import EXIT_INTERRUPTED, Interrupted, StopRequest
from multimodal.align.module import AlignModule
from multimodal.align.processes import place
from multimodal.align.running import TrainerOptions

# Nothing that is drawn in a process of its own: dropout differs, as it must.
CHANGES: dict[str, Any] = {"dropout": 0.0, "accumulate": 2, "learning_rate": 1e-3}


def train_in_float64(out_dir: Path | None, stop: StopRequest | None = None) -> Any:
    """Fit with as many processes as there are."""
    plain = fitting.Trainer
    fitting.Trainer = partial(Trainer, precision="64-true")
    try:
        return train(out_dir, stop, TrainerOptions(devices=place().processes), **CHANGES)
    finally:
        fitting.Trainer = plain


def get_signal_in(wanted: int) -> None:
    step, plain = 0, AlignModule.training_step

    def counted(self: AlignModule, *batch: Any) -> torch.Tensor:
        nonlocal step
        step += 1
        if step == wanted and place().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *batch)

    AlignModule.training_step = counted  # type: ignore[method-assign]


def main(out_dir: Path, step: int | None) -> None:
    torch.set_num_threads(1)
    if step is not None:
        get_signal_in(step)
    stop = StopRequest()
    try:
        with stop.listening():
            found = train_in_float64(out_dir, stop)
    except Interrupted:
        sys.exit(EXIT_INTERRUPTED)
    weights = found.aligner.state_dict()
    result = {"weights": weights, "history": found.history.to_numpy()}
    torch.save(result, out_dir / f"{place().rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
