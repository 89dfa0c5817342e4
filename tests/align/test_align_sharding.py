"""Split between processes (FSDP), encoders and towers train as whole ones do."""

from pathlib import Path
from typing import Any

import finetune_cohort
import pytest
import torch
import torch.distributed as dist
from distributed_sharding import free_port, train, train_as_one_of
from features.feature_files import TinyBrain
from finetune_cohort import Stored, align_options, module_of, store
from process_group import found_by, run_in_processes
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from encoders.errors import InputError
from multimodal.align.fit import FitResult
from multimodal.align.options import AlignOptions

EXACT = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The brain encoder has layers."""
    return store(tmp_path_factory.mktemp("layered"), "tiny", "brainlm_nystromformer")


def in_processes(
    processes: int, folder: Path, stored: Stored, options: AlignOptions, **where: Any
) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    cut_at = where.get("cut_at")
    run_in_processes(
        processes, train_as_one_of, free_port(), folder, where.get("strategy", "fsdp"),
        stored, options, where.get("out_dir"), cut_at,
    )  # fmt: skip
    return [] if cut_at else found_by(processes, folder)


def assert_as_one(
    found: list[dict[str, Any]], result: FitResult, expected: dict[str, Tensor]
) -> None:
    history = torch.from_numpy(result.history.to_numpy(copy=True))
    for process in found:
        # An epoch's mean loss is one of float32.
        torch.testing.assert_close(
            process["history"], history, rtol=1e-6, atol=1e-6, equal_nan=True
        )
        assert process["weights"].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(process["weights"][name], value, **EXACT, msg=name)


# Of ten people in batches of three the last has one: there one of two processes has none.
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "cached": {"accumulate": 2, "gradient_checkpointing": True, "sides": ("brain",)},
    "lora": {"sides": ("brain",), "tuning": {"method": "lora", "rank": 2, "learning_rate": 1e-2}},
    "frozen start": {"tuning": {"frozen_epochs": 1, "layer_decay": 0.5}, "loss": "vicreg"},
}


def check_split(processes: int, folder: Path, stored: Stored, **case: Any) -> None:
    options = align_options(**{"batch_size": 3, "epochs": 2, **case})
    # Before the others: what torch imports at the first step they then have already.
    expected = train(stored, options)
    found = in_processes(processes, folder, stored, options)
    assert_as_one(found, *expected)
    for process in found:
        assert not process["whole"]
        for what in ("parameters", "averages"):
            held, full = map(sum, zip(*process[what], strict=True))
            assert held < 0.75 * full


@pytest.mark.parametrize("case", ["full", "cached"])
def test_split_encoders_train_as_whole_ones(case: str, layered: Stored, tmp_path: Path) -> None:
    check_split(2, tmp_path, layered, **CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lora", "frozen start"])
def test_so_do_those_that_three_processes_share(case: str, layered: Stored, tmp_path: Path) -> None:
    check_split(3, tmp_path, layered, **CASES[case])


@pytest.mark.slow
def test_so_does_an_encoder_that_passes_by_its_layers(tmp_path: Path) -> None:
    # Without gradients it streams, taking its layers' weights; layers share some of them.
    stored = store(tmp_path / "cohort", "caduceus_ps")
    tuning = {"method": "lora", "learning_rate": 1e-2}
    check_split(2, tmp_path, stored, sides=("dna",), accumulate=2, tuning=tuning, epochs=1)


@pytest.mark.parametrize(
    "go_on", ["fsdp", *(pytest.param(other, marks=pytest.mark.slow) for other in ("ddp", "one"))]
)
def test_a_checkpoint_is_gone_on_with_by_any_strategy(
    go_on: str, tiny: Stored, tmp_path: Path
) -> None:
    options = align_options(batch_size=5, epochs=4, tuning={"learning_rate": 1e-2})
    out_dir = tmp_path / "run"
    in_processes(2, tmp_path / "cut", tiny, options, out_dir=out_dir, cut_at=2)
    assert not list((tmp_path / "cut").glob("*.pt"))
    saved = torch.load(out_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(type(value) is Tensor for value in saved["state_dict"].values())
    if go_on == "one":
        result, found = train(tiny, options, out_dir=out_dir)
        resumed = [
            {"weights": found, "history": torch.from_numpy(result.history.to_numpy(copy=True))}
        ]
    else:
        resumed = in_processes(2, tmp_path / "on", tiny, options, strategy=go_on, out_dir=out_dir)
    assert_as_one(resumed, *train(tiny, options))
    if go_on == "fsdp":
        undisturbed = in_processes(2, tmp_path / "whole", tiny, options)
        for name, value in undisturbed[0]["weights"].items():
            assert torch.equal(resumed[0]["weights"][name], value), name


class Reading(nn.Module):
    """Reads the weights of a layer that it calls, as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 4)])

    def forward(self, values: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](values)) * self.layers[0].bias


def test_an_encoder_that_cannot_be_split_is_refused(
    tiny: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(*_: str) -> TinyBrain:
        made = TinyBrain()
        made.backbone = Reading()
        return made.double()

    monkeypatch.setattr(finetune_cohort, "encoder", reading)
    module, _ = module_of(tiny, align_options(("brain",)))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(
            InputError, match=r"tiny_brain cannot be split \(.*set trainer.strategy"
        ):
            module.shard(init_device_mesh("cpu", (1,)))
    finally:
        dist.destroy_process_group()
