"""Training Caduceus: gradient checkpointing, and steps of masked-language modelling."""

from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import load_encoder
from encoders.caduceus.model import masked_lm_loss

MASK, NOT_COUNTED = 3, -100
VARIANTS = {
    "ps": {"rcps": True},
    "ps_unfused": {"rcps": True, "fused_add_norm": False, "rms_norm": False},
    "ph": {"rcps": False},
    "ph_untied": {"rcps": False, "bidirectional_weight_tie": False, "tie_word_embeddings": False},
}
over_variants = pytest.mark.parametrize("variant", VARIANTS)


def encoder_of(variant: str, dtype: str = "float32") -> Any:
    config = {"d_model": 8, "n_layer": 3, "ssm_cfg": {"d_state": 4}, **VARIANTS[variant]}
    encoder = load_encoder("caduceus", config=config, dtype=dtype)
    return encoder.requires_grad_(True)


def gradients(encoder: Any, checkpointed: bool) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.gradient_checkpointing(checkpointed)
    encoder.zero_grad()
    batch = encoder.tokenize(["ACGTTGCATTNACGTTTGCA", "ACGGT"])
    features = encoder(*batch)
    loss = masked_lm_loss(encoder.backbone.logits(batch.input_ids), batch.input_ids)
    (features.square().sum() + loss).backward()
    named = encoder.named_parameters()
    return features.detach(), {name: p.grad.clone() for name, p in named}


@over_variants
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_checkpointed_gradients_are_equal(variant: str, dtype: str) -> None:
    encoder = encoder_of(variant, dtype)
    plain_features, plain = gradients(encoder, False)
    features, checkpointed = gradients(encoder, True)
    assert plain.keys() == checkpointed.keys()
    # In float32 the native kernels take layers tile by tile (test_caduceus_streamed_training).
    limit = 0.0 if dtype == "float64" else 1e-4
    torch.testing.assert_close(features, plain_features, rtol=limit, atol=limit)
    for name, gradient in plain.items():
        scale = limit * float(gradient.abs().max())
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=scale, msg=name)


def test_checkpointed_layers_are_run_twice_and_only_for_gradients() -> None:
    encoder = encoder_of("ps")
    layers = encoder.backbone.caduceus.backbone.layers
    runs = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: runs.append(1))
    batch = encoder.tokenize(["ACGTTGCATT"])
    for checkpointed, graded, wanted in ((False, True, 3), (True, True, 6), (True, False, 3)):
        encoder.gradient_checkpointing(checkpointed)
        runs.clear()
        with torch.set_grad_enabled(graded):
            total = encoder(*batch).sum()
        if graded:
            total.backward()
        assert len(runs) == wanted


def test_a_network_without_layers_says_so() -> None:
    with pytest.raises(ValueError, match="no layers that can be recomputed"):
        load_encoder("fc").gradient_checkpointing()


@over_variants
def test_steps_lower_the_loss_of_masked_bases(variant: str) -> None:
    network = encoder_of(variant).backbone.train()
    network.caduceus.backbone.recompute_layers = True
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(7, 11, (8, 24), generator=generator)
    # Every second base repeats its neighbour: masked, it can be told from there.
    ids[:, 1::2] = ids[:, ::2]
    masked, labels = ids.clone(), torch.full_like(ids, NOT_COUNTED)
    hidden = torch.rand(ids.shape, generator=generator) < 0.15
    masked[hidden], labels[hidden] = MASK, ids[hidden]
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = masked_lm_loss(network.logits(masked), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    if network.config.tie_word_embeddings or network.config.rcps:
        names = dict(network.named_parameters())
        assert not any(name.startswith("lm_head") for name in names), "the head is the embedding"
