"""Shared test set-up: reproducible threads, and others for who asks."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread_a_worker() -> None:
    """Keep parallel test workers from fighting over the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def threads():
    """Give a function that sets torch's number of threads, which is put back."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
