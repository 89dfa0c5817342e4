"""A start from canonical coordinates, blind to how groups differ where that is asked for."""

import numpy as np
import pytest
import torch

from multimodal.align.aligner import Aligner
from multimodal.align.losses import rank_percentiles
from multimodal.align.warmstart import start_from_cca
from projectors.tower import Tower, TowerOptions

TRAINED = 300
CODES = {"known": 1.0, "of some": 0.7}


def confounded(seed: int, shared: float) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Features of 600 people [n, 1, 10] twice, and their group, which moves both."""
    random = np.random.default_rng(seed)
    group = random.integers(0, 2, 600)
    common = random.standard_normal((600, 10))
    sides = [
        shared * common @ random.standard_normal((10, 10)) / 3
        + random.standard_normal((600, 10))
        + 2 * np.outer(group, random.standard_normal(10))
        for _ in range(2)
    ]
    gene, brain = (torch.from_numpy(side)[:, None, :] for side in sides)
    return gene, brain, group


def started(gene: torch.Tensor, brain: torch.Tensor, groups: np.ndarray | None) -> list[np.ndarray]:
    """Latents of the people the start has not seen."""
    options = TowerOptions(hidden_dim=64, latent_dim=32)
    towers = [Tower.fit(side[:TRAINED], options) for side in (gene, brain)]
    aligner = Aligner(towers[0], towers[1], ["w"]).eval()
    seen = [
        tower.standardise(side[:TRAINED]) for tower, side in zip(towers, (gene, brain), strict=True)
    ]
    groups = None if groups is None else groups[:TRAINED]
    start_from_cca(aligner, seen[0], seen[1], ridge=0.1, seed=0, groups=groups)
    with torch.no_grad():
        return [
            tower(side[TRAINED:]).numpy() for tower, side in zip(towers, (gene, brain), strict=True)
        ]


def percentile(latents: list[np.ndarray]) -> float:
    gene, brain = map(torch.from_numpy, latents)
    return float(rank_percentiles(gene, brain, torch.arange(len(gene))).mean())


def gap(latents: np.ndarray, group: np.ndarray) -> float:
    """How far the groups' means are apart, in standard deviations of all."""
    apart = latents[group == 1].mean(axis=0) - latents[group == 0].mean(axis=0)
    return float(np.linalg.norm(apart) / np.sqrt(latents.var(axis=0).sum()))


@pytest.mark.parametrize("known", CODES.values(), ids=CODES)
def test_groups_are_not_what_a_start_is_made_of(known: float) -> None:
    plain, blind, gaps = [], [], []
    for seed in range(5):
        gene, brain, group = confounded(seed, 0.0)
        told = np.where(np.random.default_rng(seed).random(600) < known, group, -1)
        before, after = started(gene, brain, None), started(gene, brain, told[:, None])
        plain.append(percentile(before))
        blind.append(percentile(after))
        test = group[TRAINED:]
        gaps += [gap(new, test) / gap(old, test) for old, new in zip(before, after, strict=True)]
    assert np.mean(plain) > 0.65
    assert np.mean(blind) == pytest.approx(0.5, abs=0.03)
    assert max(gaps) < 0.5


def test_what_goes_together_within_groups_stays() -> None:
    gene, brain, group = confounded(7, 1.5)
    blind = started(gene, brain, group[:, None])
    assert percentile(blind) > 0.8
    # Groups drawn at random cost nothing.
    chance = np.random.default_rng(0).integers(0, 2, (600, 1))
    with_chance, without = started(gene, brain, chance), started(gene, brain, None)
    assert percentile(with_chance) == pytest.approx(percentile(without), abs=0.02)
