"""BrainLM's pretraining goes on: checkpointed gradients, falling loss, and the way back to disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders import load_encoder
from encoders.brainlm.autoencoder import load_nystromformer_autoencoder, load_vitmae_autoencoder
from encoders.brainlm.checkpoint import save_network
from encoders.recompute import set_gradient_checkpointing

PARCELS, FRAMES = 10, 20
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
    "hidden_dropout_prob": 0.1,
}
NYSTROMFORMER = {
    **SMALL,
    "num_brain_voxels": PARCELS,
    "num_timepoints_per_voxel": FRAMES,
    "timepoint_patching_size": 5,
    "mask_ratio": 0.4,
}
VITMAE = {**SMALL, "parcels": PARCELS, "frames": FRAMES, "mask_ratio": 0.4}
FAMILIES = [
    pytest.param("brainlm_nystromformer", load_nystromformer_autoencoder, NYSTROMFORMER, id="A"),
    pytest.param("brainlm_vitmae", load_vitmae_autoencoder, VITMAE, id="B"),
]
both_families = pytest.mark.parametrize(("name", "load", "config"), FAMILIES)


def recordings(name: str, count: int = 2) -> tuple[Tensor, ...]:
    """Two groups of parcels in opposite phase of one slow wave: the one tells of the other."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(FRAMES) / FRAMES * 6.283
    phase = torch.rand(count, 1, 1, generator=generator) * 6.283
    sides = torch.tensor([1.0, -1.0]).repeat_interleave(PARCELS // 2)[:, None]
    signal = sides * torch.sin(time + phase)
    if name == "brainlm_vitmae":
        return (signal[:, None].expand(-1, 3, -1, -1).contiguous(),)
    xyz = torch.rand(PARCELS, 3, generator=generator) * 100 - 50
    return signal, xyz.expand(count, -1, -1)


def gradients(network: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    torch.manual_seed(4)
    loss = network.reconstruct(*given).loss
    loss.backward()
    named = network.named_parameters()
    return loss.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


@both_families
@pytest.mark.parametrize("training", [True, False], ids=["dropout", "no_dropout"])
def test_checkpointed_gradients_are_equal(
    name: str, load: Any, config: dict[str, Any], training: bool
) -> None:
    network = load(config=config).train(training)
    given = recordings(name)
    plain_loss, plain = gradients(network, given)
    set_gradient_checkpointing(network)
    loss, checkpointed = gradients(network, given)
    assert torch.equal(loss, plain_loss)
    assert plain.keys() == checkpointed.keys()
    for key, gradient in plain.items():
        assert torch.equal(checkpointed[key], gradient), key
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert set(plain) == {n for n, _ in network.named_parameters()} - frozen


@both_families
def test_checkpointing_through_the_encoder(name: str, load: Any, config: dict[str, Any]) -> None:
    encoder = load_encoder(name, config=config).requires_grad_(True)
    given = recordings(name)
    segments, rest = given[0], given[1:]
    if segments.ndim == 4:
        segments = segments[:, 0]
    found = []
    for enabled in (False, True):
        encoder.gradient_checkpointing(enabled)
        assert encoder.backbone.vit.encoder.recompute_layers is enabled
        encoder.zero_grad()
        encoder(segments, *rest).square().sum().backward()
        found.append(
            {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
        )
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@both_families
def test_steps_lower_the_loss_and_come_back_from_disk(
    name: str, load: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    network = load(config=config).train()
    set_gradient_checkpointing(network)
    given = recordings(name, count=4)
    tokens = 40 if name == "brainlm_nystromformer" else 27**2
    noise = torch.rand(4, tokens, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = network.reconstruct(*given, noise).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    save_network(network, network.config, tmp_path)
    again = load(tmp_path)
    assert again.config == network.config
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    encoder = load_encoder(name, tmp_path)
    assert encoder.spec.config == network.config.as_dict()
