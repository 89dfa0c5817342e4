"""Advice about pages changes neither what a tensor holds nor where it lies."""

import mmap

import pytest
import torch

from encoders import large_pages
from encoders.large_pages import in_large_pages


@pytest.fixture
def advised(monkeypatch):
    """What the system is advised: start, length, kind."""
    calls = []
    monkeypatch.setattr(large_pages, "_madvise", lambda: lambda *call: calls.append(call) or 0)
    return calls


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux has such advice")
def test_only_whole_pages_of_large_tensors_are_named(advised) -> None:
    values = torch.empty(2**21)
    assert in_large_pages(values) is values
    ((start, length, kind),) = advised
    assert start % mmap.PAGESIZE == 0
    assert values.data_ptr() <= start < values.data_ptr() + mmap.PAGESIZE
    assert start + length == values.data_ptr() + values.nbytes
    assert kind == mmap.MADV_HUGEPAGE
    in_large_pages(torch.empty(2**10))
    assert len(advised) == 1


def test_values_are_kept() -> None:
    values = torch.arange(2.0**21)
    assert torch.equal(in_large_pages(values), torch.arange(2.0**21))


def test_a_system_without_such_pages_is_left_alone(monkeypatch) -> None:
    large_pages._madvise.cache_clear()
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    values = torch.ones(2**21)
    assert in_large_pages(values) is values
    large_pages._madvise.cache_clear()
