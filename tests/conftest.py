"""Shared test set-up: reproducible threads."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread_a_worker() -> None:
    """Keep parallel test workers from fighting over the cores."""
    import torch

    torch.set_num_threads(1)
