"""Processes, loggers: what they may be, and that a fit of several is the fit of one."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from distributed_fit import train_in_float64

from encoders.errors import InputError
from multimodal.align.data import EpochSampler
from multimodal.align.interruption import EXIT_INTERRUPTED
from multimodal.align.loggers import make_loggers
from multimodal.align.options import AlignOptions
from multimodal.align.processes import Place, Processes, companions, joined, place
from multimodal.align.running import LOGGERS, TrainerOptions
from multimodal.verbs.labels import refuse_missing_columns

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
SRUN = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_the_environment_says_who_is_who(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name in {**TORCHRUN, **SRUN}:
        monkeypatch.delenv(name, raising=False)
    assert place() == Place()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place() == Place(3, 1, 4)
    with (
        pytest.raises(InputError, match="4 processes were started"),
        joined(TrainerOptions(), "cpu"),
    ):
        pass


@pytest.mark.parametrize(
    "verb", ["demo", "encode", "encoders", "evaluate", "push", "report", "simulate"]
)
def test_what_one_process_does_is_not_done_by_several(
    monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    module: Any = importlib.import_module(f"multimodal.verbs.{verb}")
    with pytest.raises(InputError, match=f"4 processes of `genebold {verb}` were started"):
        module.run(None)


def test_several_machines_want_a_launcher() -> None:
    options = TrainerOptions(num_nodes=2)
    with pytest.raises(InputError, match="torchrun on each machine"), companions(options, print):
        pass


def test_one_process_makes_it_itself() -> None:
    assert Processes(Place()).from_first(lambda: 3) == 3


def test_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(make_loggers(TrainerOptions().logger, tmp_path)) == 2
    with pytest.raises(InputError, match=r"'csvv'.*some of csv, tensorboard, mlflow, wandb"):
        TrainerOptions(logger=("csvv",))
    monkeypatch.setitem(LOGGERS, "wandb", "a_package_that_is_not_there")
    with pytest.raises(InputError, match="pip install a_package_that_is_not_there"):
        TrainerOptions(logger=("csv", "wandb"))


def test_all_bad_options_are_told_at_once() -> None:
    with pytest.raises(InputError) as error:
        TrainerOptions(devices=0, num_nodes=0, strategy="split")  # type: ignore[arg-type]
    assert [problem.where for problem in error.value.problems] == [
        "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    ]  # fmt: skip


def test_columns_that_training_wants_are_looked_for() -> None:
    people = pd.DataFrame({"site": ["a", "b"], "sex": ["F", "M"]})
    refuse_missing_columns(people, AlignOptions(batch_strata=("site",), adversary=("sex",)))
    wanted = AlignOptions(batch_strata=("site", "scanner"), adversary=("coil",))
    with pytest.raises(InputError) as error:
        refuse_missing_columns(people, wanted)
    assert [problem.where for problem in error.value.problems] == [
        "align.batch_strata=scanner", "align.adversary=coil",
    ]  # fmt: skip


def test_an_interrupted_epoch_draws_the_batches_that_are_left() -> None:
    whole, left = (EpochSampler(np.arange(23), 5, 1, begun=begun) for begun in ((0, 0), (3, 2)))
    for epoch in (3, 4):
        for sampler in (whole, left):
            sampler.set_epoch(epoch)
        rows = [batch.rows.tolist() for batch in whole]
        assert [batch.rows.tolist() for batch in left] == rows[2 if epoch == 3 else 0 :]
    assert len(left) == len(whole)


def launch(processes: int, *arguments: Any) -> int:
    script = Path(__file__).parent / "distributed_fit.py"
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [*run, f"--nproc-per-node={processes}", str(script), *map(str, arguments)]
    # What the script imports lies beside it and one folder above.
    paths = [str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(words, timeout=500, capture_output=True, env=env).returncode


def assert_as_one(found: dict[str, Any], expected: Any) -> None:
    history = torch.from_numpy(expected.history.to_numpy(copy=True))
    torch.testing.assert_close(
        torch.tensor(found["history"]), history, rtol=0, atol=1e-6, equal_nan=True
    )
    for name, value in expected.aligner.state_dict().items():
        torch.testing.assert_close(found["weights"][name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_a_fit_of_several_processes_is_the_fit_of_one(tmp_path: Path, processes: int) -> None:
    expected = train_in_float64(None)
    assert launch(processes, tmp_path) == 0
    for rank in range(processes):
        assert_as_one(torch.load(tmp_path / f"{rank}.pt", weights_only=False), expected)
    assert len(list((tmp_path / "logs" / "csv").iterdir())) == 1


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_any_number_goes_on(tmp_path: Path) -> None:
    expected = train_in_float64(None)
    assert launch(2, tmp_path, 8) != 0
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "0.pt").exists()
    resumed = train_in_float64(tmp_path)
    weights = resumed.aligner.state_dict()
    assert_as_one({"weights": weights, "history": resumed.history.to_numpy()}, expected)


def test_the_exit_code_is_none_that_means_something_else() -> None:
    assert EXIT_INTERRUPTED == 75
