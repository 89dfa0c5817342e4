"""A small cohort, and one small demo, that the tests of the verbs share."""

import shutil
from pathlib import Path

import pytest
from command import SMALL, genebold

from multimodal.simulate.cohort import simulate_cohort
from multimodal.simulate.options import SimulationOptions


@pytest.fixture(scope="session")
def finished_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 20, not to be changed."""
    folder = tmp_path_factory.mktemp("cohort") / "cohort"
    simulate_cohort(
        folder,
        SimulationOptions(
            subjects=20,
            family_fraction=0.2,
            region_count=2,
            region_length_bp=700,
            causal_variants=4,
            causal_dimensions=2,
            frames_one_run=96,
            frames_two_runs=64,
            voxels=(10, 10, 10),
            missing_rate=0.0,
        ),
    )
    return folder


@pytest.fixture
def cohort(finished_cohort: Path, tmp_path: Path) -> Path:
    """A copy of the cohort, to be damaged."""
    return Path(shutil.copytree(finished_cohort, tmp_path / "cohort"))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished demo, not to be changed."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = genebold("demo", f"run_dir={folder}", *SMALL, fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder
