"""One small bundle for all tests of a process, and copies of it to be damaged."""

import shutil
from pathlib import Path

import pytest
from small_bundle import write_small_bundle


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cohort`` and ``bundle``, not to be changed."""
    folder = tmp_path_factory.mktemp("bundle") / "world"
    write_small_bundle(folder)
    return folder


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(world, tmp_path / "world"))
