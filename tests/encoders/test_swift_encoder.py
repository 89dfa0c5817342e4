"""SwiFT as an encoder: its record, its configuration, and what training and compiling need."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from encoders import load_encoder
from encoders.errors import InputError
from encoders.swift.checkpoint import REQUIRED
from encoders.swift.config import SwiFTConfig
from encoders.swift.encoder import PRETRAINING_COHORTS, SwiFTEncoder, load_swift_with_head
from encoders.swift.heads import make_head
from encoders.swift.layers import make_drop_path
from encoders.swift.model import SwiFTBackbone, pool
from encoders.swift.windows import Windows

CONFIG = Path(__file__).parents[2] / "configs" / "brain" / "swift.yaml"
PUBLISHED_PARAMETERS = 4_315_212
SMALL: dict[str, Any] = {
    "img_size": [8, 12, 4, 5],
    "patch_size": [2, 3, 1, 1],
    "window_size": [2, 2, 2, 2],
    "first_window_size": [3, 2, 4, 4],
    "embed_dim": 4,
    "depths": [2, 1],
    "num_heads": [1, 2],
    "last_layer_full_MSA": False,
}


def small(dtype: str = "float32", seed: int = 0, **changes: Any) -> SwiFTEncoder:
    encoder = load_encoder("swift", config={**SMALL, **changes}, dtype=dtype, seed=seed)
    assert isinstance(encoder, SwiFTEncoder)
    return encoder


def draw(encoder: SwiFTEncoder, batch: int = 2, frames: int | None = None) -> Tensor:
    config = encoder.backbone.config
    shape = (batch, config.in_chans, *config.img_size[:3], frames or config.img_size[3])
    values = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    return values.to(next(encoder.parameters()).dtype)


def test_the_published_size() -> None:
    encoder = load_encoder("swift")
    spec = encoder.spec
    assert spec.parameters == PUBLISHED_PARAMETERS
    assert spec.feature_dim == 288
    assert spec.input.shape == (96, 96, 96)
    assert (spec.input.frames, spec.input.voxel_mm) == (20, 2.0)
    assert spec.input.normalisation == "swift_znorm"
    assert spec.input.tr_s is None
    heads = {"clf_mlp_v1": 289, "clf_mlp_v2": 334_081, "reg_mlp": 289, "emb_mlp": 37_120}
    for name, parameters in heads.items():
        head = make_head(name, 288)
        assert sum(p.numel() for p in head.parameters()) == parameters


def test_stored_weights_of_unknown_training_are_taken_for_the_published(tmp_path: Path) -> None:
    encoder = small()
    path = tmp_path / "model.safetensors"
    save_file(encoder.backbone.state_dict(), path)
    spec = load_encoder("swift", path, config=encoder.spec.config).spec
    assert spec.pretraining_cohorts == PRETRAINING_COHORTS
    assert spec.input.tr_s == 0.735
    assert spec.input.space == "MNI152NLin6Asym"
    changes = {"tr_s": 0.8, "pretraining_cohorts": ["mine"], "normalisation": "swift_minmax"}
    spec = load_encoder("swift", path, config={**encoder.spec.config, **changes}).spec
    assert spec.pretraining_cohorts == ("mine",)
    assert (spec.input.tr_s, spec.input.normalisation) == (0.8, "swift_minmax")


def test_the_demos_configuration() -> None:
    values = yaml.safe_load(CONFIG.read_text())
    encoder = load_encoder(values["name"], config=values["config"])
    assert isinstance(encoder, SwiFTEncoder)
    assert set(REQUIRED) - {"in_chans"} <= set(values["config"])
    assert encoder.spec.input.voxel_mm is None
    with torch.no_grad():
        features = encoder(draw(encoder, 3))
    assert features.shape == (3, encoder.spec.feature_dim)


def test_features_are_the_mean_of_the_last_hidden_state() -> None:
    encoder = small("float64")
    segments = draw(encoder)
    with torch.no_grad():
        hidden = encoder.backbone(segments)
        assert hidden.shape == (2, 8, 2, 2, 2, 5)
        torch.testing.assert_close(encoder(segments), hidden.mean((2, 3, 4, 5)))


def test_all_wrong_axes_are_named() -> None:
    encoder = small()
    with pytest.raises(InputError) as error:
        encoder(torch.zeros(1, 2, 9, 12, 5, 6))
    assert [problem.where for problem in error.value.problems] == [
        "swift: channels",
        "swift: x",
        "swift: z",
        "swift: frames",
    ]
    with pytest.raises(InputError, match="six"):
        encoder.backbone(torch.zeros(8, 12, 4, 5))
    with pytest.raises(InputError, match="frames"):
        encoder(draw(encoder, frames=4))
    with pytest.raises(InputError, match="frames"):
        encoder.backbone(draw(encoder)[..., :0])


WRONG = {
    "img_size": ([8, 12, 5, 5], [8, 12, 4], [8, 12, 4, 0], 7, "large", [8, 12, 4.0, 5]),
    "patch_size": ([2, 3, 1, 5], [3, 3, 1, 1], [0, 3, 1, 1]),
    "window_size": ([2, 2, 2], [2, 2, 2, 0], 2),
    "first_window_size": (None, [2, 2, -1, 2]),
    "depths": ([2], [2, 0], [], 2, [True, True]),
    "num_heads": ([3, 2], [1, 2, 4], [1, 0]),
    "embed_dim": (0, 4.0, "4", True),
    "in_chans": (0,),
    "c_multiplier": (0, 1.5),
    "mlp_ratio": (0, float("inf")),
    "drop_rate": (1, -0.1),
    "drop_path_rate": (1.5,),
    "qkv_bias": (1, None),
    "patch_norm": (True,),
    "last_layer_full_MSA": ("True", 1, None),
    "spatial_dims": (3,),
    "downsample": ("merging",),
    "normalisation": ("zscore", "brainmt_znorm"),
    "voxel_mm": (0, -2.0, "2"),
    "tr_s": (0,),
    "pretraining_cohorts": ("HCP", [1]),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_impossible_arguments_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError) as error:
        SwiFTConfig.from_dict({**SMALL, name: value})
    codes = {problem.code for problem in error.value.problems}
    assert codes <= {"bad-config-type", "bad-config-value"}
    named = " ".join(problem.where for problem in error.value.problems)
    # A number of stages that does not fit is said of num_heads, wherever it comes from.
    assert name in named or (name, "num_heads" in named) == ("depths", True) or "img_size" in named


def test_all_wrong_arguments_are_said_at_once() -> None:
    with pytest.raises(InputError) as error:
        SwiFTConfig.from_dict({**SMALL, "depth": 3, "embed_dim": "4", "qkv_bias": 0})
    assert len(error.value.problems) == 3
    with pytest.raises(InputError) as error:
        SwiFTConfig.from_dict({**SMALL, "patch_norm": True, "in_chans": 0, "mlp_ratio": -1.0})
    assert len(error.value.problems) == 3


def test_arguments_survive_json() -> None:
    config = SwiFTConfig.from_dict({**SMALL, "img_size": 12, "pretraining_cohorts": ["HCP"]})
    assert config.img_size == (12, 12, 12, 12)
    assert SwiFTConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 6)] * 4),
    window=st.tuples(*[st.integers(1, 5)] * 4),
    shifted=st.booleans(),
)
def test_windows_give_the_grid_back(grid: Any, window: Any, shifted: bool) -> None:
    windows = Windows.fit(grid, window, shifted=shifted)
    hidden = torch.randn(2, *grid, 3)
    cut = windows.split(hidden)
    count, tokens = 1, 1
    for size, side in zip(grid, windows.window, strict=True):
        count, tokens = count * -(-size // side), tokens * side
    assert cut.shape == (count, 2, tokens, 3)
    assert torch.equal(windows.join(cut), hidden)
    strangers = windows.find_strangers(torch.device("cpu"))
    if strangers is not None:
        assert strangers.shape == (count, tokens, tokens)
        assert torch.equal(strangers, strangers.mT)
        assert not strangers.diagonal(dim1=1, dim2=2).any()


def test_strangers_come_from_both_ends_of_an_axis() -> None:
    windows = Windows.fit((4, 1, 1, 1), (2, 2, 2, 2), shifted=True)
    assert (windows.window, windows.shift) == ((2, 1, 1, 1), (1, 0, 0, 0))
    strangers = windows.find_strangers(torch.device("cpu"))
    assert strangers is not None
    # 1 2 | 3 0: the second window holds the last and the first place of the axis.
    assert strangers.tolist() == [[[False, False]] * 2, [[False, True], [True, False]]]


def test_one_stage_stores_a_second_and_never_runs_it() -> None:
    """As upstream's constructor makes it."""
    encoder = small(depths=[2], num_heads=[2])
    names = set(encoder.backbone.state_dict())
    assert any(name.startswith("layers.1.") for name in names)
    segments = draw(encoder)
    with torch.no_grad():
        before = encoder(segments)
        for parameter in encoder.backbone.layers[1].parameters():
            parameter.zero_()
        assert torch.equal(encoder(segments), before)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout: float) -> None:
    rates = {"drop_rate": dropout, "attn_drop_rate": dropout}
    gradients = []
    for again in (False, True):
        encoder = small("float64", use_checkpoint=again, **rates).train()
        torch.manual_seed(4)
        encoder(draw(encoder)).square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.backbone.named_parameters()})
    plain, checkpointed = gradients
    assert sum(grad is not None for grad in plain.values()) > 20
    for name, gradient in plain.items():
        if gradient is None:
            assert checkpointed[name] is None
        else:
            torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-12, atol=1e-15)


def test_dropout_acts_in_training_alone() -> None:
    encoder = small(drop_rate=0.5, attn_drop_rate=0.5)
    segments = draw(encoder)
    with torch.no_grad():
        still = encoder(segments)
        assert torch.equal(encoder(segments), still)
        assert torch.equal(still, small()(segments))
        assert not torch.equal(encoder.train()(segments), still)


@pytest.mark.slow
def test_drop_path_leaves_out_whole_branches() -> None:
    layer = make_drop_path(0.5).train()
    torch.manual_seed(0)
    rows = layer(torch.ones(64, 2, 3)).flatten(1)
    assert {tuple(row.tolist()) for row in rows} == {(0.0,) * 6, (2.0,) * 6}
    encoder = small(drop_path_rate=0.5)
    segments = draw(encoder)
    with torch.no_grad():
        assert torch.equal(encoder(segments), small()(segments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs(dtype: torch.dtype) -> None:
    encoder = small()
    segments = draw(encoder)
    with torch.no_grad():
        exact = encoder(segments)
        with torch.autocast("cpu", dtype=dtype):
            rough = encoder(segments)
    assert torch.isfinite(rough).all()
    assert (rough - exact).abs().max() / exact.abs().max() < 0.05


def test_a_head_on_a_fresh_backbone_trains(tmp_path: Path) -> None:
    encoder = small()
    state = {f"model.{key}": value for key, value in encoder.backbone.state_dict().items()}
    head = make_head("emb_mlp", 8).state_dict()
    state |= {f"output_head.{key}": value for key, value in head.items()}
    path = tmp_path / "model.safetensors"
    save_file({key: value.clone() for key, value in state.items()}, path)
    network = load_swift_with_head(path, config={**SMALL, "in_chans": 1})
    embedding = network.train()(draw(encoder, 4))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))
    embedding[:, 0].sum().backward()
    assert network.model.patch_embed.fc.weight.grad is not None


def assert_same_as_eager(run: Any, backbone: SwiFTBackbone, segments: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(run(segments), backbone(segments), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_export() -> None:
    encoder = small()
    segments = draw(encoder)
    exported = torch.export.export(encoder.backbone, (segments,)).module()
    assert_same_as_eager(exported, encoder.backbone, segments)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend: str) -> None:
    encoder = small()
    segments = draw(encoder)
    torch._dynamo.reset()
    compiled = torch.compile(encoder.backbone, backend=backend, fullgraph=True)
    assert_same_as_eager(compiled, encoder.backbone, segments)
    wide = compiled(segments)
    assert pool(wide).shape == (2, 8)
    pool(wide).sum().backward()
    assert encoder.backbone.patch_embed.fc.weight.grad is not None
