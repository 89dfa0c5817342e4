"""Haplotypes, regions, segments and runs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import InputError
from projectors.pooling import AttentionPool, motion_weights, pool_haplotypes, pool_segments


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_phase_does_not_matter(seed, subjects, windows):
    random = np.random.default_rng(seed)
    merged = torch.from_numpy(random.normal(size=(9, 5)).astype(np.float32))
    index = torch.from_numpy(random.integers(0, 9, (subjects, windows, 2)))
    pooled = pool_haplotypes(merged, index)
    assert torch.equal(pooled, pool_haplotypes(merged, index.flip(-1)))
    assert torch.allclose(pooled, merged[index].mean(dim=2), rtol=1e-6)


def test_single_haplotype_passes_through():
    merged = torch.arange(6.0).reshape(3, 2)
    index = torch.tensor([[[2], [0]]])
    assert pool_haplotypes(merged, index).tolist() == [[[4.0, 5.0], [0.0, 1.0]]]


def test_motion_weights_fall_and_half_at_two_tenths():
    weights = motion_weights(torch.tensor([0.0, 0.1, 0.2, 0.5, float("nan")]))
    assert weights[0] == 1
    assert weights[2] == pytest.approx(0.5)
    assert bool((weights[:4].diff() < 0).all())
    assert weights[4] == 1
    assert motion_weights(torch.tensor([0.0, 3.0]), "mean").tolist() == [1, 1]
    with pytest.raises(InputError, match="motion or mean"):
        motion_weights(torch.zeros(1), "median")


def test_segments_pool_by_run_then_subject():
    values = torch.tensor([[1.0], [3.0], [10.0], [5.0]])
    subject, run = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 0])
    plain = pool_segments(values, subject, run, torch.ones(4), 2)
    assert plain.tolist() == [[6.0], [5.0]]
    weighted = pool_segments(values, subject, run, torch.tensor([1.0, 3.0, 0.5, 0.1]), 2)
    # Run 0: (1 + 9) / 4 = 2.5 at mean weight 2; run 1: 10 at 0.5.
    assert weighted.flatten().tolist() == pytest.approx([(2.5 * 2 + 10 * 0.5) / 2.5, 5.0])


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_order_of_segments_does_not_matter(seed):
    random = np.random.default_rng(seed)
    subject = torch.from_numpy(np.r_[np.arange(4), random.integers(0, 4, 12)])
    run = torch.from_numpy(random.integers(0, 3, 16))
    values = torch.from_numpy(random.normal(size=(16, 3)))
    weights = torch.from_numpy(random.uniform(0.1, 1, 16))
    order = torch.from_numpy(random.permutation(16))
    first = pool_segments(values, subject, run, weights, 4)
    second = pool_segments(values[order], subject[order], run[order], weights[order], 4)
    assert torch.allclose(first, second, rtol=1e-12, atol=1e-12)


def test_subject_without_segments_is_named():
    with pytest.raises(InputError, match=r"rows \[1\].*1 of 3 subjects"):
        pool_segments(
            torch.zeros(2, 1), torch.tensor([0, 2]), torch.zeros(2).long(), torch.ones(2), 3
        )


def test_attention_tells_regions_apart():
    torch.manual_seed(0)
    pool = AttentionPool(6, windows=3, heads=2)
    features = torch.randn(4, 3, 6)
    assert pool(features).shape == (4, 12)
    assert pool.out_dim == 12
    # Equal content in another region is another thing.
    assert not torch.allclose(pool(features), pool(features[:, [1, 0, 2]]))
