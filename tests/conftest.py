"""Shared test set-up: where the numeric fixtures lie, and reproducible threads."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def parity_roots() -> list[Path]:
    """Folders with fixtures of the published encoders: ours, and a full set where one is at hand.

    The full set is the folder that ``GENEBOLD_PARITY`` names. Cases found twice are run once, from
    the full set.
    """
    named = os.environ.get("GENEBOLD_PARITY")
    return [*([Path(named)] if named else []), TESTS / "parity"]


def parity_cases(model: str) -> list[Path]:
    """Return the case folders of `model` ("caduceus", "brainlm"), each name once."""
    found: dict[str, Path] = {}
    for root in parity_roots():
        for case in sorted((root / model).glob("*/README.md")):
            found.setdefault(case.parent.name, case.parent)
    return [found[name] for name in sorted(found)]


@pytest.fixture(scope="session", autouse=True)
def _one_thread_a_worker() -> None:
    """Keep parallel test workers from fighting over the cores."""
    import torch

    torch.set_num_threads(1)
