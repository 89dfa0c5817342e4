"""Fits with encoders that learn, in float64, alone or as one of several processes."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_cohort import SUBJECTS, Stored, split
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from multimodal.align import fit as fitting
from multimodal.align.fit import FitResult
from multimodal.align.keeping import Keeper
from multimodal.align.options import AlignOptions
from multimodal.align.running import TrainerOptions

Share = tuple[int, int]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def be_one_of(rank: int, processes: int, port: int) -> None:
    """Say in the environment what torchrun would."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"


@contextmanager
def in_float64() -> Iterator[None]:
    plain = fitting.Trainer
    fitting.Trainer = partial(Trainer, precision="64-true")  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        fitting.Trainer = plain  # type: ignore[misc]


def train(
    stored: Stored, options: AlignOptions, running: TrainerOptions | None = None, **where: Any
) -> tuple[FitResult, dict[str, Tensor]]:
    """Fit, and return what towers and encoders have learned."""
    encoders = stored.tuned(options.fine_tune)
    with in_float64():
        result = fitting.fit(
            stored.gene, stored.brain, split(), np.arange(SUBJECTS), None, options,
            encoders=encoders, progress=False, running=running, **where,
        )  # fmt: skip
    found = dict(result.aligner.state_dict())
    for side, part in encoders.items():
        found |= {f"{side}.{name}": value for name, value in part.delta().items()}
        # The encoder itself is whole again, and ends with what it learned.
        found[f"{side} features"] = part(np.arange(3)).detach()
    return result, found


def shares(tensors: Any) -> list[Share]:
    """Return how many numbers of each split tensor this process holds, and of how many."""
    return [(t.to_local().numel(), t.numel()) for t in tensors if isinstance(t, DTensor)]


class Cut(BaseException):
    """Stands in for a power cut within one process."""


@contextmanager
def watching(seen: dict[str, list[Share]], cut_at: int | None = None) -> Iterator[None]:
    """Note after each epoch how much of the encoders this process holds; end after one of them."""
    plain = Keeper.on_train_epoch_end

    def look(self: Keeper, trainer: Any, module: Any) -> None:
        plain(self, trainer, module)
        if trainer.current_epoch + 1 == cut_at:
            raise Cut
        networks = [part.encoder for part in module.tuned().values()] if module.sharded else []
        parameters = [p for network in networks for p in network.parameters()]
        averages = trainer.optimizers[0].state
        kept = [averages[p]["exp_avg"] for p in parameters if p in averages]
        seen["parameters"], seen["averages"] = shares(parameters), shares(kept)
        seen["whole"] = [(p.numel(), p.numel()) for p in parameters if not isinstance(p, DTensor)]

    Keeper.on_train_epoch_end = look  # type: ignore[method-assign]
    try:
        yield
    finally:
        Keeper.on_train_epoch_end = plain  # type: ignore[method-assign]


def train_as_one_of(
    rank: int,
    processes: int,
    port: int,
    folder: Path,
    strategy: str,
    stored: Stored,
    options: AlignOptions,
    out_dir: Path | None = None,
    cut_at: int | None = None,
) -> None:
    """Fit as one of several processes, and write what came of it; nothing after a cut."""
    be_one_of(rank, processes, port)
    running: Any = TrainerOptions(devices=processes, strategy=strategy, logger=())  # type: ignore[arg-type]
    seen: dict[str, list[Share]] = {}
    try:
        with watching(seen, cut_at):
            result, found = train(stored, options, running, out_dir=out_dir)
    except Cut:
        return
    history = torch.from_numpy(result.history.to_numpy(copy=True))
    torch.save({"weights": found, "history": history, **seen}, folder / f"{rank}.pt")
