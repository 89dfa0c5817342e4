"""Merging strands: reverse-complement invariance is exact, not approximate."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import InputError
from projectors.strand import MERGE_MODES, merge

STRANDED = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.just(2), st.integers(1, 9)),
    elements=st.floats(-1e6, 1e6, width=32),
)


@pytest.mark.parametrize("mode", [mode for mode in MERGE_MODES if mode != "concat"])
@given(values=STRANDED)
@settings(deadline=None, max_examples=40)
def test_invariant_modes_are_bit_equal_when_strands_swap(mode, values):
    features = torch.from_numpy(values)
    assert torch.equal(merge(features, mode), merge(features.flip(-2), mode))


def test_concat_keeps_strand_identity():
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert merge(features, "concat").tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert not torch.equal(merge(features, "concat"), merge(features.flip(-2), "concat"))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", [2.0, 1.0]),
        ("sum", [4.0, 2.0]),
        ("max", [3.0, 4.0]),
        ("sum_absdiff", [4.0, 2.0, 2.0, 6.0]),
    ],
)
def test_values(mode, expected):
    assert merge(torch.tensor([[1.0, 4.0], [3.0, -2.0]]), mode).tolist() == expected


@pytest.mark.parametrize("mode", MERGE_MODES)
def test_one_strand_passes_through_and_two_keep_the_batch_axes(mode):
    one, two = torch.randn(3, 5, 1, 7), torch.randn(3, 5, 2, 7)
    assert torch.equal(merge(one, mode), one[:, :, 0])
    merged = 14 if mode in ("sum_absdiff", "concat") else 7
    assert merge(two, mode).shape == (3, 5, merged)


def test_bad_mode_and_bad_strand_count():
    with pytest.raises(InputError, match="sum_absdiff"):
        merge(torch.zeros(1, 2, 3), "median")
    with pytest.raises(ValueError, match="3 strands"):
        merge(torch.zeros(1, 3, 3), "mean")
