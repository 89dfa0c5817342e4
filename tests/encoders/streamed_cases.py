"""Small Caduceus networks of every architecture that is streamed."""

from typing import Any

import torch

from encoders import load_encoder

SMALL = {"d_model": 12, "n_layer": 3, "ssm_cfg": {"d_state": 4}}
INNER = 2 * SMALL["d_model"]
VARIANTS = {
    "ps": {"rcps": True},
    "ps_even": {"rcps": True, "n_layer": 4},
    "ps_one": {"rcps": True, "n_layer": 1},
    "ps_unfused": {"rcps": True, "fused_add_norm": False},
    "ps_layer_norm": {"rcps": True, "rms_norm": False},
    "ps_one_way": {"rcps": True, "bidirectional": False},
    "ps_one_way_biased": {
        "rcps": True,
        "bidirectional": False,
        "ssm_cfg": {"d_state": 4, "bias": True, "conv_bias": False},
    },
    "ps_taps": {"rcps": True, "ssm_cfg": {"d_state": 3, "d_conv": 2, "expand": 1}},
    "ph": {"rcps": False},
    "ph_one_way": {"rcps": False, "bidirectional": False, "rms_norm": False},
}


def small_caduceus(variant: str, dtype: str, **more: Any) -> Any:
    """Make an encoder with random weights, none of which is zero or one."""
    config = {**SMALL, **VARIANTS[variant], **more, "initializer_cfg": {"initializer_range": 1.0}}
    encoder = load_encoder("caduceus", config=config, dtype=dtype, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in encoder.backbone.named_parameters():
            if name.endswith(("norm.weight", "norm_f.weight", "bias", ".D")):
                values.add_(torch.randn(values.shape, generator=generator))
    return encoder
