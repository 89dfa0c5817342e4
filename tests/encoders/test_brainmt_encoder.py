"""BrainMT as an encoder: configuration, files, sizes, precision, memory and compilation."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from encoders import load_encoder
from encoders.base import VolumeInput
from encoders.brainmt import model as model_module
from encoders.brainmt.config import BrainMTConfig, token_grid
from encoders.brainmt.encoder import BrainMTEncoder, load_brainmt
from encoders.brainmt.layers import DropPath
from encoders.brainmt.model import BrainMT
from encoders.errors import InputError
from encoders.mamba import Mamba, TwoWayMamba

SHAPE, FRAMES = (17, 20, 12), 3
SMALL: Mapping[str, Any] = {
    "img_size": list(SHAPE),
    "num_frames": FRAMES,
    "embed_dim": 16,
    "depth": [2, 2],
}
both_ways = pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "two_way"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def segments(batch: int = 2, **size: Any) -> Tensor:
    shape, frames = size.get("shape", SHAPE), size.get("frames", FRAMES)
    return draw(batch, size.get("channels", 1), *shape, frames)


def small(dtype: str = "float32", **config: Any) -> BrainMTEncoder:
    return load_brainmt(config={**SMALL, **config}, dtype=dtype)


def stored(folder: Path, **config: Any) -> tuple[Path, dict[str, Tensor]]:
    """A bare file of a small network's tensors."""
    tensors = {k: v.clone() for k, v in small(**config).backbone.state_dict().items()}
    save_file(tensors, folder / "weights.safetensors")
    return folder / "weights.safetensors", tensors


# --- What a pipeline is told


def test_the_published_network() -> None:
    with torch.device("meta"):
        networks = [BrainMT(BrainMTConfig(bidirectional=both)) for both in (False, True)]
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [39_104_961, 40_567_233]
    assert BrainMTConfig.from_mapping({}) == BrainMTConfig()


@pytest.mark.slow
def test_the_spec_of_the_published_network() -> None:
    spec = load_encoder("brainmt").spec
    assert spec.parameters == 39_104_961
    assert spec.feature_dim == 512
    assert spec.input == VolumeInput(
        shape=(91, 109, 91),
        frames=200,
        voxel_mm=2.0,
        space="MNI152NLin6Asym",
        normalisation="brainmt_znorm",
        orientation="LAS",
    )


def test_small_networks_take_voxels_of_any_size() -> None:
    spec = small(normalisation="brainmt_minmax").spec
    assert spec.input == VolumeInput(
        SHAPE, FRAMES, normalisation="brainmt_minmax", orientation="LAS"
    )
    wanted = small(voxel_mm=6.0).spec.input
    assert isinstance(wanted, VolumeInput)
    assert wanted.voxel_mm == 6.0


@pytest.mark.parametrize(
    ("dataset", "cohorts", "tr_s"),
    [
        (None, ("UK Biobank", "HCP"), None),
        ("ukb", ("UK Biobank",), 0.735),
        ("hcp", ("HCP",), 0.72),
        ("mine", ("mine",), None),
    ],
)
def test_what_trained_weights_have_seen(
    tmp_path: Path, dataset: str | None, cohorts: tuple[str, ...], tr_s: float | None
) -> None:
    path, _ = stored(tmp_path)
    spec = load_brainmt(path, config={**SMALL, "dataset": dataset}).spec
    assert isinstance(spec.input, VolumeInput)
    assert (spec.pretraining_cohorts, spec.input.tr_s) == (cohorts, tr_s)
    assert spec.weight_license == "NOASSERTION"


# --- Configuration


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"embed_dims": 16}, ["embed_dims"]),
        ({"embed_dim": 18}, ["embed_dim"]),
        ({"embed_dim": 16, "stem_dim": 8}, ["embed_dim"]),
        ({"embed_dim": 16, "num_heads": 3}, ["embed_dim"]),
        ({"depth": 4}, ["depth"]),
        ({"depth": [2, -1]}, ["depth"]),
        ({"img_size": [16, 16]}, ["img_size"]),
        ({"img_size": "16"}, ["img_size"]),
        ({"num_frames": 0, "in_chans": True}, ["num_frames", "in_chans"]),
        ({"num_patches": 2.5}, ["num_patches"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate"]),
        ({"drop_rate": float("nan")}, ["drop_rate"]),
        ({"rms_norm": 1}, ["rms_norm"]),
        ({"norm_epsilon": 0}, ["norm_epsilon"]),
        ({"pooling": "max"}, ["pooling"]),
        ({"normalisation": "zscore"}, ["normalisation"]),
        ({"voxel_mm": -2}, ["voxel_mm"]),
        ({"dataset": 3}, ["dataset"]),
        ({"ssm_cfg": [1]}, ["ssm_cfg"]),
        ({"ssm_cfg": {"layer": "Mamba2", "d_state": 0}}, ["ssm_cfg: layer", "ssm_cfg: d_state"]),
        ({"ssm_cfg": {"dt_rank": "none"}}, ["dt_rank"]),
        ({"initializer_cfg": {"range": 1}}, ["initializer_cfg: range"]),
    ],
)
def test_configurations_that_fit_no_network_are_refused(
    config: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        BrainMTConfig.from_mapping(config)
    where = [problem.where for problem in error.value.problems]
    assert all(any(name in place for place in where) for name in named)
    assert len(where) == len(named)


def test_arguments_that_upstream_ignores_change_nothing() -> None:
    ignored = {"name": "BrainMT", "patch_size": 4, "bimamba": True, "checkpoint_num": 3}
    assert BrainMTConfig.from_mapping({**ignored, "ssm_cfg": None}) == BrainMTConfig()


def test_a_configuration_survives_json() -> None:
    config = small(ssm_cfg={"d_state": 4, "dt_rank": 3}, bidirectional=True).spec.config
    again = BrainMTConfig.from_mapping(json.loads(json.dumps(config)))
    assert again.as_dict() == config


# --- Files


@both_ways
def test_widths_and_directions_are_read_off_the_tensors(
    tmp_path: Path, bidirectional: bool
) -> None:
    widths: dict[str, Any] = {"stem_in_dim": 3, "stem_dim": 4, "bidirectional": bidirectional}
    path, _ = stored(tmp_path, **widths)
    config = {key: value for key, value in SMALL.items() if key != "img_size"}
    encoder = load_brainmt(path, config=config)
    found = encoder.spec.config
    assert {key: found[key] for key in widths} == widths
    assert found["num_patches"] == 4
    mixer = TwoWayMamba if bidirectional else Mamba
    assert type(encoder.backbone.layers[0].mixer) is mixer
    assert torch.equal(encoder(segments()), small(**widths)(segments()))


def test_names_of_the_distributed_wrapper_are_taken(tmp_path: Path) -> None:
    _, tensors = stored(tmp_path)
    path = tmp_path / "model.pth"
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, path)
    assert torch.equal(load_brainmt(path, config=SMALL)(segments()), small()(segments()))


def test_weights_without_a_configuration_are_refused(tmp_path: Path) -> None:
    path, _ = stored(tmp_path)
    with pytest.raises(InputError) as error:
        load_brainmt(path)
    assert error.value.problems[0].code == "config-missing"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    with pytest.raises(InputError) as error:
        load_brainmt(tmp_path)
    assert error.value.problems[0].code == "config-missing"
    values = small().spec.config
    for content in (values, {"constructor": values, "seed": 3}, {"model": values}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert torch.equal(load_brainmt(tmp_path)(segments()), small()(segments()))


def test_rates_of_decay_stay_wide_in_fresh_narrow_weights() -> None:
    wide = dict(small().backbone.named_parameters())
    narrow = load_brainmt(config=SMALL, dtype="bfloat16").backbone
    rates = {n: p for n, p in narrow.named_parameters() if n.endswith(("A_log", "mixer.D"))}
    assert rates
    assert all(torch.equal(values, wide[name]) for name, values in rates.items())


def test_all_that_is_wrong_with_weights_is_listed(tmp_path: Path) -> None:
    path, tensors = stored(tmp_path)
    del tensors["norm_f.weight"]
    tensors["pos_embed"] = tensors["pos_embed"].clone()
    tensors["pos_embed"][0, 0, 0] = float("nan")
    tensors["layers.0.mixer.D"] = tensors["layers.0.mixer.D"][:-1].clone()
    tensors["layers.0.mixer.D_b"] = torch.ones(32)
    save_file(tensors, path)
    with pytest.raises(InputError) as error:
        load_brainmt(path, config=SMALL)
    assert {problem.code for problem in error.value.problems} == {
        "tensor-missing",
        "tensor-not-finite",
        "tensor-shape",
        "tensor-unexpected",
    }


def test_one_direction_does_not_take_weights_of_two(tmp_path: Path) -> None:
    path, _ = stored(tmp_path, bidirectional=True)
    with pytest.raises(InputError, match="A_b_log"):
        load_brainmt(path, config={**SMALL, "bidirectional": False})


# --- Sizes


@given(shape=st.tuples(*(st.integers(1, 40) for _ in range(3))))
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_volumes_of_any_size_make_the_tokens_that_were_counted(shape: tuple[int, int, int]) -> None:
    encoder = small(img_size=list(shape), embed_dim=8, num_frames=1, depth=[0, 0])
    grid = token_grid(shape)
    assert encoder.backbone.config.num_patches == grid[0] * grid[1] * grid[2]
    maps = encoder.backbone._convolve(draw(1, 1, *shape))
    assert tuple(maps.shape[2:]) == grid
    assert encoder(segments(shape=shape, frames=1)).shape == (2, 8)


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        (segments(frames=FRAMES + 1), "frames"),
        (segments(channels=2), "channels"),
        (segments(shape=(17, 20, 13)), "17 x 20 x 13"),
        (segments(shape=(20, 17, 12)), "20 x 17 x 12"),
        (segments()[0], "axes"),
    ],
)
def test_segments_of_another_size_are_refused(given_: Tensor, named: str) -> None:
    with pytest.raises(InputError, match=named):
        small()(given_)


def test_a_stated_size_that_the_weights_do_not_have_is_told_when_it_is_used() -> None:
    encoder = small(img_size=[91, 109, 91], num_patches=4)
    assert encoder(segments()).shape == (2, 16)
    with pytest.raises(InputError, match="img_size"):
        encoder(segments(shape=(16, 16, 16)))


def test_the_network_itself_refuses_what_does_not_fit() -> None:
    backbone = small().backbone
    for wrong, named in (
        ((2, FRAMES, 1, 17, 20), "axes"),
        ((2, FRAMES, 2, 20, 17, 12), "channels"),
        ((2, FRAMES + 1, 1, 20, 17, 12), "frames"),
        ((2, FRAMES, 1, 20, 17, 33), "tokens"),
    ):
        with pytest.raises(ValueError, match=named):
            backbone(torch.zeros(wrong))


def test_a_network_of_one_frame_has_one_time_for_all() -> None:
    backbone = small(num_frames=1).backbone
    assert backbone(draw(1, 5, 1, 20, 17, 12)).shape == (1, 1 + 4 * 5, 16)


# --- What comes out


def test_pooling_heads_and_last_hidden_state() -> None:
    encoder, given_ = small(num_classes=3), segments()
    volumes = given_.permute(0, 5, 1, 3, 2, 4)
    hidden = encoder.backbone(volumes)
    assert hidden.shape == (2, 1 + 4 * FRAMES, 16)
    assert torch.equal(encoder(given_), hidden[:, 0])
    assert torch.equal(encoder.backbone.predict(volumes), encoder.backbone.head(hidden[:, 0]))
    assert encoder.backbone.predict(volumes).shape == (2, 3)
    mean = small(num_classes=3, pooling="mean")
    assert torch.equal(mean(given_), hidden[:, 1:].mean(1))
    headless = small(num_classes=0).backbone
    assert torch.equal(headless.predict(volumes), headless.forward_features(volumes))


@both_ways
def test_only_two_directions_let_the_cls_token_see_the_rest_before_attention(
    bidirectional: bool,
) -> None:
    encoder = small("float64", depth=[2, 0], bidirectional=bidirectional)
    one, other = (encoder(segments().double() + shift) for shift in (0.0, 1.0))
    assert torch.equal(one, other) != bidirectional


def test_frames_go_through_the_stem_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, given_ = small("float64"), segments().double()
    whole = encoder(given_)
    monkeypatch.setattr(model_module, "_STEM_VOXELS", 2 * 17 * 20 * 12)
    torch.testing.assert_close(encoder(given_), whole, rtol=0, atol=1e-12)


def test_dropped_branches_come_back_as_others_scaled() -> None:
    drop, x = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    out = drop(x)
    kept = out[:, 0, 0] > 0
    torch.testing.assert_close(out[kept], x[kept] / 0.75)
    assert torch.equal(out[~kept], torch.zeros_like(out[~kept]))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert drop.eval()(x) is x


# --- Memory, precision, compilation


@both_ways
def test_recomputing_gives_equal_gradients_under_dropout(bidirectional: bool) -> None:
    config: dict[str, Any] = {
        "drop_path_rate": 0.5,
        "drop_rate": 0.1,
        "attn_drop_rate": 0.1,
        "fc_drop_rate": 0.1,
    }
    found = []
    for recompute in (False, True):
        encoder = small(**config, bidirectional=bidirectional, use_checkpoint=recompute).train()
        volumes = segments(4).permute(0, 5, 1, 3, 2, 4)
        torch.manual_seed(1)
        encoder.backbone.predict(volumes).square().sum().backward()
        found.append({name: p.grad for name, p in encoder.backbone.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=1e-8, msg=name)


@both_ways
def test_recomputing_keeps_fewer_numbers(bidirectional: bool) -> None:
    kept = []
    for recompute in (False, True):
        backbone = small(bidirectional=bidirectional, use_checkpoint=recompute).backbone
        numbers = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone(segments().permute(0, 5, 1, 3, 2, 4))
        kept.append(numbers)
    assert kept[1] < 0.3 * kept[0]


@both_ways
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_reduced_precision(dtype: str, bidirectional: bool) -> None:
    exact = small("float64", bidirectional=bidirectional)(segments().double())
    cast = small(dtype, bidirectional=bidirectional)
    assert cast.backbone.get_parameter("layers.0.mixer.A_log").dtype == torch.float32
    narrow = small(bidirectional=bidirectional)
    with torch.autocast("cpu", dtype=getattr(torch, dtype)):
        mixed = narrow(segments())
    for found in (cast(segments()), mixed):
        off = (found.double() - exact).norm() / exact.norm()
        assert off < (0.03 if dtype == "bfloat16" else 0.005)


@pytest.mark.slow
@both_ways
@torch.no_grad()
def test_compiled_and_exported_networks_give_the_same(bidirectional: bool) -> None:
    backbone = small(bidirectional=bidirectional).backbone
    volumes = segments().permute(0, 5, 1, 3, 2, 4).contiguous()
    expected = backbone(volumes)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(backbone), backend="aot_eager")
    torch.testing.assert_close(compiled(volumes), expected, rtol=1e-5, atol=1e-5)
    exported = torch.export.export(backbone, (volumes,)).module()
    torch.testing.assert_close(exported(volumes), expected, rtol=1e-5, atol=1e-5)
