"""Several processes train as one does: loss at every step, and final weights."""

from pathlib import Path

import pytest
import torch
from distributed_training import CASES, RUN, train, train_as_one_of
from process_group import found_by, run_in_processes

from multimodal.align.options import LOSSES

EXACT = {"rtol": 0.0, "atol": 1e-6}


def in_processes(
    processes: int, wrapper: str, folder: Path, cases: list[str]
) -> list[dict[str, RUN]]:
    """Train in processes of their own and return what each of them found."""
    run_in_processes(processes, train_as_one_of, wrapper, folder, cases)
    return found_by(processes, folder)


def assert_as_one_process(found: list[dict[str, RUN]]) -> None:
    for name in found[0]:
        expected = train(CASES[name])
        for process in found:
            torch.testing.assert_close(process[name]["losses"], expected["losses"], **EXACT)
            for weight, value in expected["weights"].items():
                torch.testing.assert_close(
                    process[name]["weights"][weight], value, **EXACT, msg=f"{name}: {weight}"
                )


def test_training_moves_the_weights() -> None:
    for name in ("info_nce", "siglip", "vicreg, pairs"):
        run = train(CASES[name])
        start = train({**CASES[name], "batch_size": None})
        assert len(run["losses"]) > 2
        assert any(
            not torch.allclose(run["weights"][key], start["weights"][key], atol=1e-3)
            for key in run["weights"]
        )


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    cases = [*LOSSES, "info_nce, cached", "info_nce, chunked", "info_nce, adversary"]
    assert_as_one_process(in_processes(2, "ddp", tmp_path, cases))


@pytest.mark.slow
def test_three_processes_train_as_one(tmp_path: Path) -> None:
    assert_as_one_process(in_processes(3, "ddp", tmp_path, list(CASES)))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_sharded_processes_train_as_one(tmp_path: Path, processes: int) -> None:
    assert_as_one_process(in_processes(processes, "fsdp", tmp_path, list(CASES)))
