"""No attention of the brain encoders keeps its scores, and none gives other numbers for it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.brainlm import nystromformer, vitmae
from encoders.brainlm.config import NystromformerConfig, ViTMAEConfig
from encoders.brainmt.config import BrainMTConfig
from encoders.brainmt.layers import Attention
from encoders.swift.config import SwiFTConfig
from encoders.swift.layers import WindowAttention

TOKENS, LANDMARKS, WIDTH, HEADS = 96, 12, 16, 2
SCORES = [(TOKENS, TOKENS), (TOKENS, LANDMARKS), (LANDMARKS, TOKENS)]


def plain(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Softmax attention as the papers write it, in the place of torch's own."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if given.get("attn_mask") is not None:
        scores = scores + given["attn_mask"]
    return scores.softmax(-1) @ value


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """One attention module in float64, and what it takes."""
    torch.manual_seed(0)
    tokens = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
    if name.startswith("swift"):
        module: nn.Module = WindowAttention(SwiFTConfig(), WIDTH, HEADS)
        shape = (3, TOKENS, TOKENS)
        strangers = torch.rand(shape) < 0.3 if name == "swift, shifted" else None
        return module.double(), (tokens[:, None].expand(-1, 2, -1, -1), strangers)
    if name == "brainlm_vitmae":
        module = vitmae.SelfAttention(ViTMAEConfig(), WIDTH, HEADS)
    elif name == "brainmt":
        module = Attention(BrainMTConfig(embed_dim=WIDTH, stem_dim=4, num_heads=HEADS))
    else:
        few = {"num_landmarks": LANDMARKS, "segment_means_seq_len": TOKENS}
        config = NystromformerConfig(**(few if name.endswith("approximate") else {}))
        module = nystromformer.SelfAttention(config, WIDTH, HEADS)
    return module.double(), (tokens,)


NAMES = [
    *("swift", "swift, shifted", "brainlm_vitmae", "brainmt"),
    *("brainlm_nystromformer", "brainlm_nystromformer, approximate"),
]


def gradients(module: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor, list[Tensor], int]:
    """The output, all gradients, and the size of the largest score matrix kept for them."""
    kept = [0]

    def pack(tensor: Tensor) -> Tensor:
        # Queries, keys and values end in a head's width; what is masked asks for no gradient.
        if tensor.requires_grad and tensor.shape[-2:] in SCORES:
            kept.append(tensor.numel())
        return tensor

    hidden = given[0].clone().requires_grad_()
    module.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(hidden, *given[1:])
    output.square().sum().backward()
    found = [hidden.grad, *(parameter.grad for parameter in module.parameters())]
    return output.detach(), [grad.clone() for grad in found if grad is not None], max(kept)


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_the_plain_form_without_its_scores(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, given = build(name)
    output, found, kept = gradients(module, given)
    monkeypatch.setattr(F, "scaled_dot_product_attention", plain)
    wanted_output, wanted, plainly_kept = gradients(module, given)
    torch.testing.assert_close(output, wanted_output, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    assert plainly_kept > 0
    assert kept == 0


def test_few_landmarks_approximate_as_written_in_the_paper() -> None:
    """Xiong et al. (2021), equation 7: three softmax matrices, the middle one inverted."""
    module, (tokens,) = build("brainlm_nystromformer, approximate")
    assert isinstance(module, nystromformer.SelfAttention)
    query, key, value = (
        project(tokens).unflatten(2, (HEADS, -1)).transpose(1, 2)
        for project in (module.query, module.key, module.value)
    )
    query, key = (x * x.shape[-1] ** -0.25 for x in (query, key))
    few_queries, few_keys = (x.unflatten(2, (LANDMARKS, -1)).mean(3) for x in (query, key))
    first, middle, last = (
        (left @ right.mT).softmax(-1)
        for left, right in ((query, few_keys), (few_queries, few_keys), (few_queries, key))
    )
    wanted = first @ nystromformer._pseudo_inverse(middle) @ (last @ value)
    module.conv = None
    found = module(tokens).unflatten(2, (HEADS, -1)).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
