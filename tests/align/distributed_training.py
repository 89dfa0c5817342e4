"""Training of a small aligner for a few steps, alone or as one of several processes.

python distributed_training.py RANK PROCESSES WRAPPER RENDEZVOUS OUT CASE...
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from multimodal.align.aligner import Aligner
from multimodal.align.data import AlignDataset, EpochSampler
from multimodal.align.losses import Kinship
from multimodal.align.module import AlignModule
from multimodal.align.options import LOSSES, AlignOptions, SideOptions
from projectors.tower import Tower, TowerOptions

SUBJECTS, STEPS = 15, 6
RUN = dict[str, Any]

# Batches of 5 leave two and three processes unequal shares, batches of 2 some of three none at all.
CASES: dict[str, dict[str, Any]] = {loss: {"loss": loss, "batch_size": 5} for loss in LOSSES} | {
    f"{loss}, pairs": {"loss": loss, "batch_size": 2} for loss in LOSSES
}
CASES |= {
    "info_nce, cached": {"batch_size": 7, "accumulate": 3},
    "info_nce, chunked": {"batch_size": 7, "chunk_rows": 2},
    "siglip, cached and chunked": {
        "loss": "siglip", "batch_size": 7, "accumulate": 2, "chunk_rows": 2,
    },
    "info_nce, adversary": {
        "batch_size": 5, "adversary": ("site", "ancestry"), "adversary_weight": 1.0,
    },
    "vicreg, cached": {"loss": "vicreg", "batch_size": 2, "accumulate": 3},
}  # fmt: skip


class Step(nn.Module):
    """A training step as a forward pass, which is what wrappers wrap."""

    def __init__(self, module: AlignModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any, index: int) -> Tensor:
        return self.module.training_step(batch, index)


def make(case: dict[str, Any]) -> tuple[AlignModule, AlignDataset]:
    torch.manual_seed(0)
    side = SideOptions(dropout=0.0)
    options = AlignOptions(**case, gene=side, brain=side, latent_dim=6)
    towers = TowerOptions(hidden_dim=12, latent_dim=6, dropout=0.0)
    gene, brain = torch.randn(2, SUBJECTS, 1, 8, dtype=torch.float64)
    aligner = Aligner(Tower.fit(gene, towers), Tower.fit(brain, towers), ["one"])
    relatives = torch.tensor([0, 0, 0, 1, 1, 2, 2, *range(3, 11)])
    pairs = torch.tensor([[0, 1], [1, 2], [3, 4], [6, 5]])
    kinship = Kinship(pairs, torch.tensor([0.25, 0.25, 0.5, 0.125]))
    tables = (aligner.gene.standardise(gene), aligner.brain.standardise(brain))
    module = AlignModule(aligner, options, kinship, [2, 3] if options.adversary else None)
    confounds = torch.stack([torch.arange(SUBJECTS) % 2, torch.arange(SUBJECTS) % 4 - 1], dim=1)
    return module.double(), AlignDataset(*tables, relatives, confounds=confounds)


def train(case: dict[str, Any], rank: int = 0, processes: int = 1, wrapper: str = "none") -> RUN:
    """Return each step's loss and the weights after the last; plain SGD hides no factor."""
    module, dataset = make(case)
    step: Any = Step(module)
    if wrapper == "ddp":
        step = nn.parallel.DistributedDataParallel(step)
    elif wrapper == "fsdp":
        module.shard(init_device_mesh("cpu", (dist.get_world_size(),)))
        assert all(held < full for held, full in sizes(module.aligner.gene))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    sampler = EpochSampler(np.arange(SUBJECTS), case["batch_size"], 0, rank, processes)
    losses = []
    for index, wanted in zip(range(STEPS), sampler, strict=False):
        optimizer.zero_grad()
        loss = step(dataset[wanted], index)
        loss.backward()
        module.on_after_backward()
        optimizer.step()
        losses.append(loss.detach())
    module.join()
    weights = {n: value for n, value in module.state_dict().items() if value.is_floating_point()}
    return {"losses": torch.stack(losses), "weights": weights}


def sizes(network: nn.Module) -> list[tuple[int, int]]:
    """Return how many numbers of each split parameter this process holds, and of how many."""
    return [
        (parameter.to_local().numel(), parameter.numel())
        for parameter in network.parameters()
        if isinstance(parameter, DTensor)
    ]


def train_as_one_of(
    rank: int, processes: int, wrapper: str, folder: Path, cases: list[str]
) -> None:
    """Train all cases as one of several processes, and write what came of them."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=120),
    )
    found = {name: train(CASES[name], rank, processes, wrapper) for name in cases}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
