"""Networks through torch.export and torch.compile give the numbers that they give by themselves."""

from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import load_encoder

pytestmark = pytest.mark.slow
BRAINLM = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
}
CADUCEUS = {"d_model": 8, "n_layer": 2, "ssm_cfg": {"d_state": 4}}
SIZES = {"num_brain_voxels": 14, "num_timepoints_per_voxel": 40, "timepoint_patching_size": 10}
CONFIGS: dict[str, dict[str, Any]] = {
    "brainlm_nystromformer": {**BRAINLM, **SIZES},
    "brainlm_vitmae": {**BRAINLM, "parcels": 14, "frames": 40},
    "caduceus_ps": CADUCEUS,
    "caduceus_ph": CADUCEUS,
}


def given(name: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    if name.startswith("caduceus"):
        return (torch.randint(7, 11, (2, 24), generator=generator),)
    if name == "brainlm_vitmae":
        return (torch.randn(2, 3, 14, 40, generator=generator),)
    return (
        torch.randn(2, 14, 40, generator=generator),
        torch.randn(2, 14, 3, generator=generator),
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_exported(name: str, dtype: torch.dtype) -> None:
    """float64 takes Caduceus through the scan in plain torch, as where no kernels were built."""
    arithmetic = str(dtype).removeprefix("torch.")
    network = load_encoder(name, config=CONFIGS[name], dtype=arithmetic).backbone
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in given(name))
    wanted = network(*inputs)
    exported = torch.export.export(network, inputs).module()
    torch.testing.assert_close(exported(*inputs), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(network(*inputs), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_with_gradients(name: str, dtype: torch.dtype) -> None:
    arithmetic = str(dtype).removeprefix("torch.")
    network = load_encoder(name, config=CONFIGS[name], dtype=arithmetic).backbone
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in given(name))
    found = []
    for forward in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        network.zero_grad()
        output = forward(*inputs)
        output.square().sum().backward()
        named = network.named_parameters()
        found.append({n: p.grad for n, p in named if p.grad is not None} | {"": output.detach()})
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6, msg=key)
