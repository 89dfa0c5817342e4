"""BrainMT's stem: where channels lie in memory changes neither numbers nor files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders.brainmt import layers
from encoders.brainmt.config import token_grid
from encoders.brainmt.encoder import BrainMTEncoder, load_brainmt
from encoders.brainmt.model import BrainMT

SHAPE = (17, 20, 12)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def load(dtype: str = "float32", **config: Any) -> BrainMTEncoder:
    size = {"img_size": list(SHAPE), "num_frames": 3, "embed_dim": 64, "depth": [1, 1]}
    return load_brainmt(config={**size, **config}, dtype=dtype)


def stem_gradients(backbone: BrainMT, frames: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """The stem's output, and the gradients of what goes into it and of all its weights."""
    backbone.zero_grad()
    frames = frames.to(backbone.cls_token, copy=True).requires_grad_()
    maps = backbone._stem(frames)
    (maps * cotangent.to(maps)).sum().backward()
    assert frames.grad is not None
    named = backbone.named_parameters()
    found = {name: p.grad for name, p in named if p.grad is not None}
    return {**found, "": frames.grad, "maps": maps.detach()}


@pytest.mark.parametrize("frames", [1, 3], ids=["one_frame", "three_frames"])
@pytest.mark.parametrize("shape", [SHAPE, (16, 1, 40), (33, 21, 19)], ids=str)
def test_gradients_of_the_stem_are_those_of_float64(
    shape: tuple[int, int, int], frames: int
) -> None:
    """oneDNN has had wrong weight gradients; float64 never takes it, nor channels last."""
    exact, usual = (load(dtype, img_size=list(shape)).backbone for dtype in ("float64", "float32"))
    given_, grid = draw(frames, 1, *shape), token_grid(shape)
    cotangent = draw(frames, 64, *grid, seed=1)
    wanted, found = (stem_gradients(network, given_, cotangent) for network in (exact, usual))
    assert wanted.keys() == found.keys()
    parts = ("patch_embed", "conv_block0", "downsample0", "conv_block1", "downsample1")
    assert {name.split(".")[0] for name in wanted} == {"", "maps", *parts}
    for name, value in wanted.items():
        off = (found[name] - value).norm() / value.norm().clamp(min=1e-3)
        assert float(off) < 2e-5, f"{name}: {float(off):.1e}"


def test_the_stems_layout_stays_out_of_weights_and_gradients(tmp_path: Path) -> None:
    backbone = load().backbone
    frames = draw(3, 1, *SHAPE)
    maps = backbone.patch_embed(frames)
    assert maps.is_contiguous(memory_format=torch.channels_last_3d) == (
        layers._CPU_TAKES_CHANNELS_LAST
    )
    backbone._stem(frames).square().sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.is_contiguous(), name
        assert parameter.grad is None or parameter.grad.is_contiguous(), name
    path = tmp_path / "trained.safetensors"
    save_file(backbone.state_dict(), path)
    again = load_brainmt(path, config=load().spec.config).backbone
    assert torch.equal(again.patch_embed(frames), maps)


@torch.no_grad()
def test_the_layout_changes_no_more_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(img_size=[40, 33, 36])
    given_ = draw(2, 1, 40, 33, 36, 3)
    found = encoder(given_)
    monkeypatch.setattr(layers, "lay_out", lambda maps: maps)
    torch.testing.assert_close(found, encoder(given_), rtol=1e-4, atol=1e-5)
