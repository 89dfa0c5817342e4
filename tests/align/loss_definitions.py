"""Every loss as its paper writes it, one row and one candidate at a time, and inputs for it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal.align.losses.relatives import Kinship


def latents(seed: int, rows: int, dim: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64)
    gene, brain = F.normalize(both, dim=2)
    return gene, brain


def family_matrix(component: Tensor) -> Tensor:
    return component[:, None] == component[None, :]


def some_kinship(seed: int, component: Tensor) -> Kinship:
    """Twins, siblings and cousins among some of the pairs of a component; the others unknown."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        (i, j)
        for i in range(len(component))
        for j in range(i)
        if component[i] == component[j] and torch.rand((), generator=generator) < 0.7
    ]
    known = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    degree = torch.randint(0, 4, (len(known),), generator=generator)
    return Kinship(known, torch.tensor([0.5, 0.25, 0.0625, -0.01], dtype=torch.float64)[degree])


def _directions(gene: Tensor, brain: Tensor, related: Tensor) -> Any:
    return (gene, brain, related), (brain, gene, related.T)


def _mean(rows: list[list[Tensor]]) -> Tensor:
    kept = [torch.stack(each).mean() for each in rows if each]
    return torch.stack(kept).mean() if kept else torch.zeros((), dtype=torch.float64)


def _others(related: Tensor, i: int) -> list[int]:
    return [j for j in range(len(related)) if j != i and not related[i, j]]


def info_nce(gene: Tensor, brain: Tensor, scale: Tensor, related: Tensor) -> Tensor:
    rows: list[list[Tensor]] = [[], []]
    for side, (query, target, masked) in enumerate(_directions(gene, brain, related)):
        for i in range(len(query)):
            if others := _others(masked, i):
                logits = torch.stack([scale * query[i] @ target[j] for j in [i, *others]])
                rows[side].append(-logits.softmax(0)[0].log())
    return _mean(rows)


def siglip(
    gene: Tensor, brain: Tensor, scale: Tensor, related: Tensor, bias: float = -3.0
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(gene)):
        for j in [i, *_others(related, i)]:
            sign = 1 if i == j else -1
            total = total - torch.sigmoid(sign * (scale * gene[i] @ brain[j] + bias)).log()
    return total / max(len(gene), 1)


def debiased(
    gene: Tensor, brain: Tensor, scale: Tensor, related: Tensor, share: float = 0.3
) -> Tensor:
    rows: list[list[Tensor]] = [[], []]
    for side, (query, target, masked) in enumerate(_directions(gene, brain, related)):
        for i in range(len(query)):
            if others := _others(masked, i):
                own = (scale * query[i] @ target[i]).exp()
                mean = torch.stack([(scale * query[i] @ target[j]).exp() for j in others]).mean()
                negative = torch.maximum((mean - share * own) / (1 - share), (-scale).exp())
                rows[side].append(-(own / (own + len(others) * negative)).log())
    return _mean(rows)


def soft_target(
    gene: Tensor,
    brain: Tensor,
    scale: Tensor,
    related: Tensor,
    kinship: Kinship,
    weight: float = 0.5,
) -> Tensor:
    softness: dict[tuple[int, int], float] = {}
    for (i, j), phi in zip(kinship.pairs.tolist(), kinship.coefficient.tolist(), strict=True):
        if phi > 0:
            softness[i, j] = softness[j, i] = 1.0 if phi >= 0.354 else weight * 2 * phi
    rows: list[list[Tensor]] = [[], []]
    for side, (query, target, masked) in enumerate(_directions(gene, brain, related)):
        for i in range(len(query)):
            others = _others(masked, i)
            if not others:
                continue
            kin = [j for j in range(len(query)) if (i, j) in softness]
            candidates = list(dict.fromkeys([i, *kin, *others]))
            logits = torch.stack([scale * query[i] @ target[j] for j in candidates])
            shares = [softness.get((i, j), float(i == j)) for j in candidates]
            wanted = torch.tensor(shares, dtype=torch.float64)
            rows[side].append(-(wanted / wanted.sum() * logits.log_softmax(0)).sum())
    return _mean(rows)


def nt_xent(gene: Tensor, brain: Tensor, scale: Tensor, related: Tensor) -> Tensor:
    rows: list[list[Tensor]] = [[], []]
    related = related | related.T
    for side, (query, target, masked) in enumerate(_directions(gene, brain, related)):
        for i in range(len(query)):
            if others := _others(masked, i):
                candidates = [target[i], *target[others], *query[others]]
                logits = torch.stack([scale * query[i] @ candidate for candidate in candidates])
                rows[side].append(-logits.softmax(0)[0].log())
    return _mean(rows)


def value_and_gradients(
    loss: Callable[..., Tensor], gene: Tensor, brain: Tensor, scale: float, *rest: Any, **named: Any
) -> list[Tensor]:
    """The loss, and what it asks of genes, brains and the inverse temperature."""
    leaves = [gene.clone(), brain.clone(), torch.tensor(scale, dtype=gene.dtype)]
    for leaf in leaves:
        leaf.requires_grad_()
    value = loss(*leaves, *rest, **named)
    # A loss of nobody hangs on nothing.
    value = value + 0.0 * leaves[2]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    none = [torch.zeros_like(leaf) for leaf in leaves]
    return [value.detach(), *(z if g is None else g for g, z in zip(gradients, none, strict=True))]
