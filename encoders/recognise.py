"""Which of our encoders a checkpoint belongs to, by the names of its tensors."""

from encoders.errors import InputError, Problem
from encoders.weights import Weights

# Parts of tensor names: all of them are in that network's checkpoints, and in no other's of ours.
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "caduceus": ("caduceus.backbone.embeddings.word_embeddings.", "caduceus.backbone.norm_f."),
    "brainlm_nystromformer": ("vit.embeddings.xyz_embedding_projection.",),
    "brainlm_vitmae": ("vit.embeddings.patch_embeddings.projection.",),
    "swift": ("pos_embeds.0.time_embed", "layers.0.blocks.0.attn.qkv."),
    "brainmt": ("patch_embed.conv_down.0.", "temporal_pos_embedding"),
}


def recognise(weights: Weights) -> str:
    """Return the name of the encoder that a checkpoint belongs to.

    Raises
    ------
    InputError
        It is none of ours, or could be several.
    """
    found = [
        name
        for name, parts in _SIGNATURES.items()
        if all(any(part in tensor for tensor in weights.tensors) for part in parts)
    ]
    if len(found) == 1:
        return found[0]
    first = ", ".join(sorted(weights.tensors)[:3])
    raise InputError(
        Problem(
            "encoder-not-recognised",
            weights.id,
            f"tensors ({first}, ...) of "
            + (f"several encoders: {', '.join(found)}" if found else "no encoder of ours"),
            "one encoder",
            "say which it is: name=...",
        )
    )
