"""Caduceus itself, its parameters named as upstream names them.

Schiff et al. 2024, Caduceus: Bi-Directional Equivariant Long-Range DNA Sequence Modeling,
arXiv 2403.03234; upstream: kuleshov-group/caduceus, ``modeling_caduceus.py``.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.layers import (
    Block,
    RcBlock,
    RcEmbedding,
    RcHead,
    bare_norm,
    join_strands,
    make_add_norm,
    make_norm,
    make_rc_norm,
)
from encoders.mamba import Mamba, cast_mamba, reset_mamba
from encoders.recompute import run_layer


class Trace(NamedTuple):
    """All that a run of the network passes through; width is 2 D with RC parameter sharing.

    Parameters
    ----------
    last_hidden_state : Tensor [B, L, width]
        After the final norm.
    hidden_states : list of Tensor [B, L, width]
        Upstream's list: the embeddings, then the mixers' outputs without the residual, all but
        the last; at the end `last_hidden_state`, but with ``fused_add_norm`` only.
    residuals : list of Tensor [B, L, width]
        The residual that each layer returns, before its mixer's output is added.
    """

    last_hidden_state: Tensor
    hidden_states: list[Tensor]
    residuals: list[Tensor]


class MixerModel(nn.Module):
    """Embedding, blocks, final norm.

    Parameters
    ----------
    config : CaduceusConfig
    """

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.rcps = config.rcps
        self.lists_last_state = config.fused_add_norm
        self.recompute_layers = False
        block = RcBlock if config.rcps else Block
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": RcEmbedding(config)
                if config.rcps
                else nn.Embedding(config.vocab_size, config.d_model)
            }
        )
        self.layers = nn.ModuleList(block(config) for _ in range(config.n_layer))
        self.norm_f = make_rc_norm(config) if config.rcps else make_norm(config)
        self.add_norm = make_add_norm(config)

    def forward(
        self, embeddings: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length width"]:
        """Return the last hidden state for embedded tokens."""
        rounded = embeddings.itemsize < 4 or torch.is_autocast_enabled(embeddings.device.type)
        if self.recompute_layers and torch.is_grad_enabled() and not rounded:
            return self._finish(self._add_up(embeddings), None)
        hidden, residual = embeddings, None
        for layer in self.layers:
            hidden, residual = run_layer(layer, hidden, residual, recompute=self.recompute_layers)
        return self._finish(hidden, residual)

    def _add_up(self, total: Tensor) -> Tensor:
        """Return hidden state and residual, added, recomputing each layer from its input's sum.

        The two are only ever used as a sum, and where nothing is rounded on the way a layer can
        start from that: one tensor a layer is all that is kept.
        """
        from encoders.caduceus.streamed_training import add_up_streamed, can_train_streamed

        if can_train_streamed(self.layers, total):
            fused = self.lists_last_state
            return add_up_streamed(self.layers, total, rcps=self.rcps, fused=fused)
        for layer in self.layers:
            total = run_layer(_add_layer, layer, total, recompute=True)
        return total

    def trace(self, embeddings: Float[Tensor, "batch length width"]) -> Trace:
        """Return what `forward` returns, with all states on the way."""
        states: list[Tensor] = [embeddings]
        residuals: list[Tensor] = []
        for layer in self.layers:
            hidden, residual = layer(states[-1], residuals[-1] if residuals else None)
            states.append(hidden)
            residuals.append(residual)
        last = self._finish(states.pop(), residuals[-1])
        return Trace(last, [*states, last] if self.lists_last_state else states, residuals)

    def _finish(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        normed, _ = self.add_norm(hidden, residual, bare_norm(self.norm_f))
        return join_strands(normed) if self.rcps else normed


def _add_layer(layer: nn.Module, total: Tensor) -> Tensor:
    hidden, residual = layer(total, None)
    added: Tensor = residual + hidden
    return added


class Caduceus(nn.Module):
    """The network without a head.

    Parameters
    ----------
    config : CaduceusConfig
    """

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.rcps = config.rcps
        self.backbone = MixerModel(config)

    def embed(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """Return the embeddings that the blocks take."""
        embedded: Tensor = self.backbone.embeddings["word_embeddings"](input_ids)
        return embedded

    def forward(
        self,
        input_ids: Int[Tensor, "batch length *strand"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch length width"] | None = None,
    ) -> Float[Tensor, "batch length width *strand"]:
        """Return upstream's last hidden state, after the final norm.

        Parameters
        ----------
        input_ids : Tensor [B, L], or [B, L, 2] without RC parameter sharing
            Token ids; with a last axis of two (forward and reverse-complement ids, upstream's
            post-hoc conjoining) the network runs on each.
        inputs_embeds : Tensor [B, L, width], optional
            What `embed` gives, instead of ids.

        Returns
        -------
        Tensor [B, L, D]; [B, L, 2 D] with RC parameter sharing; [B, L, D, 2] conjoined
            Conjoined results are each in the coordinates of its own input.

        Raises
        ------
        ValueError
            Neither or both inputs given; conjoined ids for a network with RC parameter sharing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if input_ids is not None and input_ids.ndim == 3:
            if self.rcps or input_ids.shape[2] != 2:
                raise ValueError("ids [B, L, 2] are for networks without RC parameter sharing")
            return torch.stack([self(ids) for ids in input_ids.unbind(-1)], dim=-1)
        embeddings = inputs_embeds if input_ids is None else self.embed(input_ids)
        last: Tensor = self.backbone(embeddings)
        return last

    def strand_embeddings(
        self, input_ids: Int[Tensor, "batch length *strand"]
    ) -> Float[Tensor, "batch length dim strand"]:
        """Return upstream's stacked strand embeddings, each in the coordinates of its own strand.

        Parameters
        ----------
        input_ids : Tensor [B, L] with RC parameter sharing, [B, L, 2] without
            As for `forward`.

        Returns
        -------
        Tensor [B, L, D, 2]
            Position i of the second strand lies over forward position L-1-i
            (upstream's ``DNAEmbeddingModelCaduceus``).
        """
        if not self.rcps:
            conjoined: Tensor = self(input_ids)
            return conjoined
        forward, other = self(input_ids).chunk(2, dim=-1)
        return torch.stack([forward, other.flip(1, 2)], dim=-1)


class CaduceusNetwork(nn.Module):
    """A Caduceus with a head, or room for one: what checkpoints hold.

    Parameters
    ----------
    config : CaduceusConfig
    """

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.config = config
        self.caduceus = Caduceus(config)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Change the arithmetic; ``A_log`` and ``D`` stay in float32 at least, as upstream's."""
        cast_mamba(self, dtype)


class CaduceusForMaskedLM(CaduceusNetwork):
    """Caduceus with its language-model head.

    Parameters
    ----------
    config : CaduceusConfig
    head : bool
        Whether there is a head; checkpoints of the bare network have none.
    """

    def __init__(self, config: CaduceusConfig, *, head: bool = True) -> None:
        super().__init__(config)
        self.lm_head: RcHead | nn.Linear | None = None
        if head:
            self._add_head()
        self.reset_parameters()

    def _add_head(self) -> None:
        config = self.config
        words: nn.Module = self.caduceus.backbone.embeddings["word_embeddings"]
        if isinstance(words, RcEmbedding):
            rc_head = RcHead(config)
            rc_head.lm_head.weight = words.embedding.weight
            self.lm_head = rc_head
        else:
            head = nn.Linear(config.d_model, config.vocab_size, bias=False)
            if config.tie_word_embeddings and isinstance(words, nn.Embedding):
                head.weight = words.weight
            self.lm_head = head

    def embed(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """Return the embeddings that the blocks take."""
        return self.caduceus.embed(input_ids)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length *strand"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch length width"] | None = None,
    ) -> Float[Tensor, "batch length width *strand"]:
        """Return upstream's last hidden state; see `Caduceus.forward`."""
        last: Tensor = self.caduceus(input_ids, inputs_embeds=inputs_embeds)
        return last

    def trace(self, input_ids: Int[Tensor, "batch length"]) -> Trace:
        """Return the last hidden state with all states on the way."""
        return self.caduceus.backbone.trace(self.embed(input_ids))

    def strand_embeddings(
        self, input_ids: Int[Tensor, "batch length *strand"]
    ) -> Float[Tensor, "batch length dim strand"]:
        """Return upstream's stacked strand embeddings; see `Caduceus.strand_embeddings`."""
        return self.caduceus.strand_embeddings(input_ids)

    def logits(
        self, input_ids: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Return the masked-language-model logits, padding rows of the vocabulary included.

        Raises
        ------
        ValueError
            The network was built without a head.
        """
        return self.score(self(input_ids))

    def score(
        self, last_hidden_state: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Return the logits of a last hidden state; raises as `logits`."""
        if self.lm_head is None:
            raise ValueError("this checkpoint has no language-model head")
        scores: Tensor = self.lm_head(last_hidden_state)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw upstream's initial weights from torch's global generator."""
        reset_network(self.caduceus, self.config)
        if isinstance(self.lm_head, nn.Linear) and not self.config.tie_word_embeddings:
            nn.init.normal_(self.lm_head.weight, std=self.config.initializer.initializer_range)


@torch.no_grad()
def reset_network(network: Caduceus, config: CaduceusConfig) -> None:
    """Draw upstream's initial weights of the network itself from torch's global generator."""
    initializer = config.initializer
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=initializer.initializer_range)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    additions = initializer.n_residuals_per_layer * config.n_layer
    for module in network.modules():
        if isinstance(module, Mamba):
            reset_mamba(module)
            if initializer.rescale_prenorm_residual:
                module.out_proj.weight.div_(math.sqrt(additions))


def masked_lm_loss(
    logits: Float[Tensor, "batch length vocabulary"],
    labels: Int[Tensor, "batch length"],
    *,
    ignore_index: int = -100,
    weights: Float[Tensor, "batch length"] | None = None,
) -> Float[Tensor, ""]:
    """Return upstream's masked-language-model loss.

    Parameters
    ----------
    logits : Tensor [B, L, V]
    labels : Tensor [B, L]
        True ids; `ignore_index` where nothing was masked.
    ignore_index : int
        Label of positions that do not count.
    weights : Tensor [B, L], optional
        Weight of each position, normalised over all that count; unlike upstream's, not changed.

    Returns
    -------
    Tensor
        Weighted mean of the cross entropy over all rows of the padded vocabulary.
    """
    flat, targets = logits.flatten(0, 1), labels.flatten()
    if weights is None:
        return F.cross_entropy(flat, targets, ignore_index=ignore_index)
    counted = count_weights(targets, weights.flatten().to(logits.dtype), ignore_index)
    losses = F.cross_entropy(flat, targets, ignore_index=ignore_index, reduction="none")
    return (losses * counted).sum() / counted.sum()


def count_weights(
    labels: Int[Tensor, "*any"], weights: Float[Tensor, "*any"], ignore_index: int = -100
) -> Float[Tensor, "*any"]:
    """Return the loss weights with 0 where a label does not count, in a tensor of its own.

    This is what upstream leaves behind in the tensor it was given.
    """
    return torch.where(labels == ignore_index, 0, weights)
