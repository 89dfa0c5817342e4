"""InfoNCE and retrieval within a batch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal.align.losses import info_nce, rank_percentiles, related_pairs


def latents(seed, rows=8, dim=5):
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(rows, dim, generator=generator), dim=1) for _ in range(2)]


def loop_loss(gene, brain, scale, component):
    """The definition, one row and one candidate at a time."""
    directions = []
    for query, target in ((gene, brain), (brain, gene)):
        rows = []
        for i in range(len(query)):
            others = [j for j in range(len(query)) if component[j] != component[i]]
            if others:
                logits = torch.stack([scale * query[i] @ target[j] for j in [i, *others]])
                rows.append(logits.logsumexp(0) - logits[0])
        directions.append(torch.stack(rows).mean())
    return (directions[0] + directions[1]) / 2


@given(st.integers(0, 2**31), st.integers(2, 6))
@settings(deadline=None, max_examples=25)
def test_agrees_with_the_definition(seed, families):
    gene, brain = latents(seed)
    component = torch.arange(8) % families
    expected = loop_loss(gene, brain, 7.0, component.tolist())
    assert torch.allclose(info_nce(gene, brain, 7.0, component), expected, atol=1e-5)
    pairs = component[:, None] == component[None, :]
    assert torch.allclose(info_nce(gene, brain, 7.0, pairs), expected, atol=1e-5)


def test_unrelated_rows_are_plain_clip():
    gene, brain = latents(0)
    logits = 3 * gene @ brain.T
    target = torch.arange(8)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(info_nce(gene, brain, 3.0, target), expected)


def test_a_relative_s_likeness_costs_nothing():
    gene, brain = latents(1)
    component = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    before = info_nce(gene, brain, 5.0, component)
    gene.requires_grad_()
    logits_of_pair = info_nce(gene, brain, 5.0, component)
    logits_of_pair.backward()
    swapped = brain.clone()
    swapped[1] = brain[0]
    # Row 0's candidates are the six unrelated ones and itself: its sibling's brain is not seen.
    related = related_pairs(component)
    assert related[0].tolist() == [False, True] + [False] * 6
    assert torch.allclose(before, loop_loss(gene, brain, 5.0, component.tolist()), atol=1e-6)


def test_rows_without_negatives_do_not_count():
    gene, brain = latents(2)
    gene.requires_grad_()
    loss = info_nce(gene, brain, 5.0, torch.zeros(8, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(gene.grad) == 0
    single = info_nce(gene[:1], brain[:1], 5.0, torch.zeros(1, dtype=torch.long))
    assert single.item() == 0


def test_gradients_are_finite_with_masked_rows():
    gene, brain = latents(3)
    gene.requires_grad_()
    related = torch.zeros(8, 8, dtype=torch.bool)
    related[0] = True
    info_nce(gene, brain, 5.0, related).backward()
    assert bool(torch.isfinite(gene.grad).all())


def test_percentiles():
    eye = torch.eye(4)
    apart = torch.arange(4)
    assert rank_percentiles(eye, eye, apart).tolist() == [1.0] * 4
    assert rank_percentiles(torch.ones(4, 4), eye, apart).tolist() == [0.5] * 4
    assert rank_percentiles(eye, eye.roll(1, 0), apart).mean() == pytest.approx(1 / 3)
    # A relative that beats the match is no candidate.
    assert rank_percentiles(eye, eye.roll(1, 0), torch.zeros(4).long()).numel() == 0
