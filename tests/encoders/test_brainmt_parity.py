"""BrainMT against upstream's own numbers: every state, loss and gradient of every case."""

from pathlib import Path

import pytest
import torch
from brainmt_cases import (
    EVAL,
    STORED,
    TOLERANCE,
    TRAIN,
    apart,
    both_dtypes,
    expected_of,
    largest_apart,
    load,
    loss_of,
    parameters,
    settings,
    tensors,
    trace,
    volumes_of,
)
from brainmt_mistakes import MISTAKES, ONE_FRAME_HIDES, Mistake
from torch import Tensor

from encoders import load_encoder
from encoders.brainmt.encoder import BrainMTEncoder, load_brainmt
from encoders.brainmt.model import BrainMT
from encoders.brainmt.recipe import make_optimiser
from encoders.mamba import TwoWayMamba

GRADIENT_TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


def run(case: Path, backbone: BrainMT, volumes: Tensor) -> dict[str, Tensor]:
    found = trace(backbone, volumes)
    return {**found, "loss": loss_of(case, found["head"])[None]}


def check_gradients(case: Path, backbone: BrainMT, dtype: str) -> int:
    """Compare the gradients that the case states; returns how many there are."""
    found = dict(backbone.named_parameters())
    wanted = {
        key.removeprefix("grad."): value
        for key, value in expected_of(case, dtype).items()
        if key.startswith("grad.")
    }
    for name, value in wanted.items():
        gradient = found[name].grad
        assert gradient is not None, name
        off = float((gradient - value).norm() / value.norm().clamp(min=1e-12))
        assert off <= GRADIENT_TOLERANCE[dtype], f"grad.{name}: {off:.1e}"
    return len(wanted)


@both_dtypes
@pytest.mark.parametrize("case", parameters(EVAL))
@torch.no_grad()
def test_every_state(case: Path, dtype: str) -> None:
    backbone = load(case, dtype).backbone
    found = run(case, backbone, volumes_of(case, dtype))
    assert largest_apart(case, found, dtype) <= TOLERANCE[dtype]


@both_dtypes
@pytest.mark.parametrize("case", parameters(EVAL))
@torch.no_grad()
def test_features_of_segments_as_the_pipeline_gives_them(case: Path, dtype: str) -> None:
    encoder, volumes = load(case, dtype), volumes_of(case, dtype)
    segments = volumes.permute(0, 2, 4, 3, 5, 1)
    wanted = expected_of(case, dtype)["features"]
    assert apart(encoder(segments), wanted, "features") <= TOLERANCE[dtype]
    shape = list(segments.shape[2:5])
    exact = load(case, dtype, img_size=shape)
    assert exact.spec.as_dict()["input"]["shape"] == shape
    assert torch.equal(exact(segments), encoder(segments))


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@both_dtypes
@pytest.mark.parametrize("case", parameters(EVAL))
def test_gradients(case: Path, dtype: str, recompute: bool) -> None:
    backbone = load(case, dtype, use_checkpoint=recompute).backbone
    assert backbone.recompute_layers == recompute
    loss_of(case, backbone.predict(volumes_of(case, dtype))).backward()
    assert check_gradients(case, backbone, dtype) or dtype == "float64" or case in STORED


@pytest.mark.parametrize("case", parameters(EVAL))
def test_recomputed_gradients_are_equal(case: Path) -> None:
    found = []
    for recompute in (False, True):
        backbone = load(case, "float32", use_checkpoint=recompute).backbone
        loss_of(case, backbone.predict(volumes_of(case, "float32"))).backward()
        found.append({name: p.grad for name, p in backbone.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=1e-8, msg=name)


class FixedDraws:
    """Stands in for `Tensor.bernoulli_`: gives a case's masks, in its order, at its rates."""

    def __init__(self, case: Path) -> None:
        self.masks = tensors(case / "inputs.safetensors")
        self.calls = list(settings(case)["drop_path_calls_in_order"])

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Tensor, "bernoulli_", lambda like, p: self.draw(like, p))

    def draw(self, like: Tensor, share: float) -> Tensor:
        call = self.calls.pop(0)
        assert share == pytest.approx(1 - call["drop_prob"], abs=1e-12), call
        return like.copy_(self.masks[f"keep.{call['call']}"].view_as(like))


@both_dtypes
@pytest.mark.parametrize("case", parameters(TRAIN))
def test_stochastic_depth(case: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(case, dtype).backbone.train()
    draws = FixedDraws(case)
    draws.install(monkeypatch)
    found = run(case, backbone, volumes_of(case, dtype))
    assert not draws.calls
    assert largest_apart(case, found, dtype) <= TOLERANCE[dtype]
    found["loss"].sum().backward()
    check_gradients(case, backbone, dtype)


@pytest.mark.parametrize("case", parameters(TRAIN))
def test_stochastic_depth_at_other_places_is_noticed(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = volumes_of(case, "float64")
    backbone = load(case, "float64").backbone
    assert largest_apart(case, run(case, backbone, volumes), "float64") > 1e-3

    class KeptNotDivided(FixedDraws):
        def draw(self, like: Tensor, share: float) -> Tensor:
            return super().draw(like, share) * share

    class NextMask(FixedDraws):
        def draw(self, like: Tensor, share: float) -> Tensor:
            mask = super().draw(like, share)
            after = self.calls[0]["call"] if self.calls else "final"
            return mask.copy_(self.masks[f"keep.{after}"].view_as(like))

    for wrong in (KeptNotDivided, NextMask):
        wrong(case).install(monkeypatch)
        found = run(case, backbone.train(), volumes)
        assert largest_apart(case, found, "float64") > TOLERANCE["float32"], wrong.__name__


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("case", parameters(EVAL))
@torch.no_grad()
def test_mistakes_are_noticed(case: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake: Mistake = MISTAKES[name]
    backbone = load(case, "float64").backbone
    mixers = [module for module in backbone.modules() if isinstance(module, TwoWayMamba)]
    if mistake.two_way_only and not mixers:
        pytest.skip("reads one way")
    volumes = volumes_of(case, "float64")
    given = mistake.feed(volumes) if mistake.feed else volumes
    if name in ONE_FRAME_HIDES and volumes.shape[1] == 1:
        pytest.skip("one frame")
    if mistake.patch:
        mistake.patch(monkeypatch, backbone)
    off = apart(backbone.predict(given), expected_of(case, "float64")["head"], "head")
    assert off > TOLERANCE["float64"], name


@pytest.mark.parametrize("case", parameters(STORED))
@torch.no_grad()
def test_files_of_the_training_script(case: Path) -> None:
    path = next(iter(case.glob("*.pth")))
    encoder = load_encoder("brainmt", path)
    plain = tensors(case / "model.safetensors")
    stored = encoder.backbone.state_dict()
    assert set(stored) == set(plain)
    assert all(torch.equal(stored[name], plain[name]) for name in plain)
    for dtype in ("float32", "float64"):
        backbone = load_brainmt(path, dtype=dtype).backbone
        found = run(case, backbone, volumes_of(case, dtype))
        assert largest_apart(case, found, dtype) <= TOLERANCE[dtype]
    assert encoder.spec.pretraining_cohorts == ("UK Biobank",)
    assert encoder.spec.as_dict()["input"]["tr_s"] == 0.735
    stated = settings(case)
    for name in ("stem_in_dim", "stem_dim", "num_patches"):
        assert encoder.spec.config[name] == stated[name]


@pytest.mark.parametrize("case", parameters(STORED))
def test_training_goes_on_as_upstream_does(case: Path) -> None:
    stated = settings(case)
    encoder = load_encoder(
        "brainmt",
        case / "weights_before_training.safetensors",
        config={**stated["constructor"], "drop_path_rate": 0.0},
    )
    assert isinstance(encoder, BrainMTEncoder)
    backbone = encoder.backbone.train()
    optimiser, schedule = make_optimiser(backbone, batches_per_epoch=stated["loader_len"])
    assert optimiser.defaults["betas"] == tuple(stated["optimizer"]["betas"])
    assert optimiser.defaults["eps"] == stated["optimizer"]["eps"]
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    for group, wanted in zip(optimiser.param_groups, stated["optimizer_groups"], strict=True):
        assert [f"module.{names[id(p)]}" for p in group["params"]] == wanted["params"]
        assert group["weight_decay"] == wanted["weight_decay"]
        assert group["lr_scale"] == wanted["lr_scale"]
    losses, rates = [], []
    for _ in range(stated["steps"]):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.zero_grad()
        loss = loss_of(case, backbone.predict(volumes_of(case, "float32")))
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    assert losses == pytest.approx(stated["train_losses"], abs=TOLERANCE["float32"])
    assert optimiser.param_groups[0]["lr"] == pytest.approx(stated["optimizer_groups"][0]["lr"])
    before = tensors(case / "weights_before_training.safetensors")
    for name, value in tensors(case / "model.safetensors").items():
        found = backbone.state_dict()[name]
        if name.endswith("qkv.bias"):
            # A key's bias shifts all scores of a query alike, which softmax does not see: its
            # gradient is rounding alone, and Adam makes steps of it all the same.
            (query, key, v), wanted = found.chunk(3), value.chunk(3)
            assert apart(key, before[name].chunk(3)[1], name) <= 1.01 * sum(rates)
            found, value = torch.cat([query, v]), torch.cat([wanted[0], wanted[2]])
        assert apart(found, value, name) <= 3e-7, name


@pytest.mark.parametrize("case", parameters(STORED))
def test_keys_biases_have_no_gradient_but_rounding(case: Path) -> None:
    backbone = load(case, "float64").backbone
    loss_of(case, backbone.predict(volumes_of(case, "float64"))).backward()
    for index in range(len(backbone.blocks)):
        gradient = backbone.get_parameter(f"blocks.{index}.qkv.bias").grad
        assert gradient is not None
        query, key, value = gradient.chunk(3)
        assert key.abs().max() < 1e-12 * max(query.abs().max(), value.abs().max())
