"""Small configurations of all encoders, and made-up inputs for them.

A new encoder joins the tests that walk all encoders by one entry in `SMALL`: constructor arguments
with which it runs on one core in well under a second. An installed package's encoder needs none: it
is tried as its own defaults make it.
"""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import list_encoders, load_encoder
from encoders.base import BrainEncoder, Encoder, ParcelInput
from encoders.registry import third_party

PARCELS, FRAMES = 12, 40
_CADUCEUS = {"d_model": 8, "n_layer": 2, "ssm_cfg": {"d_state": 4}}
_BRAINLM = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SMALL: dict[str, dict[str, Any] | None] = {
    "caduceus": _CADUCEUS,
    "caduceus_ps": _CADUCEUS,
    "caduceus_ph": _CADUCEUS,
    "brainlm_nystromformer": {
        **_BRAINLM,
        "num_brain_voxels": PARCELS,
        "num_timepoints_per_voxel": FRAMES,
        "timepoint_patching_size": 10,
    },
    "brainlm_vitmae": {**_BRAINLM, "parcels": PARCELS, "frames": FRAMES},
    "swift": {
        "img_size": [12, 12, 12, 4],
        "patch_size": [3, 3, 3, 1],
        "window_size": [2, 2, 2, 2],
        "first_window_size": [2, 2, 2, 2],
        "embed_dim": 6,
        "depths": [2, 2],
        "num_heads": [1, 2],
    },
    "brainmt": {
        "img_size": [17, 20, 12],
        "num_frames": 3,
        "embed_dim": 16,
        "depth": [2, 2],
    },
    "huggingface": {
        "model_type": "esm",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "position_embedding_type": "rotary",
        "max_position_embeddings": 1200,
    },
    "fc": None,
}
# Encoders that an optional package stands behind.
NEEDS = {"huggingface": "transformers"}


def config_of(name: str) -> dict[str, Any] | None:
    """The arguments to try an encoder with; skips the test where what it needs is not installed."""
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{name} needs {NEEDS[name]}")
    assert name in SMALL or name in third_party(), (
        f"{name} is registered but not tried: give it a small config in SMALL of {__file__}"
    )
    return SMALL.get(name)


def load(name: str, dtype: str = "float32", seed: int = 0) -> Encoder:
    """A small encoder with fresh weights."""
    return load_encoder(name, config=config_of(name), dtype=dtype, seed=seed)


def draw(seed: int, *shape: int) -> Tensor:
    """Normal noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brain_inputs(encoder: BrainEncoder, dtype: str = "float32") -> tuple[Tensor, Tensor | None]:
    """Four segments as the spec asks for them, and coordinates where it wants them."""
    wanted = encoder.spec.input
    if isinstance(wanted, ParcelInput):
        parcels, frames = wanted.parcels or PARCELS, wanted.frames or FRAMES
        xyz = (40 * draw(1, parcels, 3)).expand(4, -1, -1) if wanted.needs_xyz else None
        return draw(2, 4, parcels, frames).to(getattr(torch, dtype)), xyz
    return draw(2, 4, 1, *wanted.shape, wanted.frames).to(getattr(torch, dtype)), None


def with_weights() -> list[str]:
    """Names of ours that have weights and a small configuration."""
    return [name for name in list_encoders() if SMALL.get(name) and name not in NEEDS]
