"""Caduceus as a `DnaEncoder`: windows in, both strands' features out."""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from encoders.base import (
    DnaEncoder,
    EncoderSpec,
    TokenBatch,
    WindowInput,
    check_pooling_weights,
    pool_bases,
)
from encoders.caduceus.checkpoint import config_values, load_network
from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.model import CaduceusForMaskedLM
from encoders.caduceus.streamed import can_stream, pool_streamed
from encoders.caduceus.tokenizer import tokenize_windows
from encoders.errors import InputError, Problem
from encoders.weights import Weights, read_weights, tensors_sha256

PAPER = (
    "Schiff et al. 2024, Caduceus: Bi-Directional Equivariant Long-Range DNA Sequence Modeling, "
    "arXiv:2403.03234"
)
# Bases of the published training windows, by the length in a checkpoint's name; longer than
# 1k they count in thousands, and "131k" is 2**17.
PUBLISHED_LENGTHS_BP: Mapping[str, int] = {"1k": 1_024, "131k": 131_072}
_PUBLISHED_NAME = re.compile(r"caduceus-p[sh]_seqlen-(\d+k)_")
# Tokens run through the network at once: bounds memory, whatever the batch.
_TOKENS_AT_ONCE = 2**16


class CaduceusEncoder(DnaEncoder):
    """A Caduceus network that gives one vector a base and strand.

    With RC parameter sharing (PS) one run gives both strands: strand 0 is the first half of the
    hidden state as upstream stores it, strand 1 the second with its channels un-flipped. Without
    (Ph) the network runs on the window and on its reverse complement. Either way the hidden
    states of a reverse-complemented window are those of the window with strands exchanged and
    positions reversed.

    Parameters
    ----------
    backbone : CaduceusForMaskedLM
    spec : EncoderSpec
    """

    backbone: CaduceusForMaskedLM
    complement_map: Int[Tensor, " vocabulary"]

    def __init__(self, backbone: CaduceusForMaskedLM, spec: EncoderSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        complement = torch.tensor(backbone.config.complement_map)
        self.register_buffer("complement_map", complement, persistent=False)

    def tokenize(self, sequences: Sequence[str]) -> TokenBatch:
        """Turn DNA strings into ids on the encoder's device; see `DnaEncoder.tokenize`."""
        assert isinstance(self.spec.input, WindowInput)
        batch = tokenize_windows(sequences, max_length_bp=self.spec.input.max_length_bp)
        return TokenBatch(*(tensor.to(self.complement_map.device) for tensor in batch))

    def hidden(
        self, input_ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length dim strand"]:
        """Hidden states of both strands, over forward positions.

        The network knows no mask: padding would be read as bases. So windows of equal length run
        together, without any padding, and each gets what it gets alone.

        Parameters
        ----------
        input_ids, mask : Tensor [B, L]
            As `tokenize` gives them.

        Returns
        -------
        Tensor [B, L, D, 2]
            Zero on padding.

        Raises
        ------
        ValueError
            The mask does not fit the ids, or is not True on the first bases of each row and
            False after.
        """
        hidden: Tensor | None = None
        lengths = _window_lengths(input_ids, mask)
        for size in lengths.unique().tolist():
            for rows in _rows_of(lengths, size, _rows_at_once(size)):
                states = self._run(input_ids[rows, :size])
                if states.shape[:2] == input_ids.shape:
                    return states
                if hidden is None:
                    hidden = states.new_zeros(*input_ids.shape, *states.shape[2:])
                hidden[rows, :size] = states
        assert hidden is not None
        return hidden

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        weights: Float[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch dim strand"]:
        """Weighted mean over real bases; see `DnaEncoder.forward`.

        Each run is pooled before the next, so that no more hidden states are held than one run
        gives, whatever the batch; without gradients, on a CPU, not even those (see
        `encoders.caduceus.streamed`). Raises as `DnaEncoder.forward` and `hidden`.
        """
        lengths = _window_lengths(input_ids, mask)
        check_pooling_weights(mask, weights)
        order, pooled = [], []
        learnt = weights is not None and weights.requires_grad and torch.is_grad_enabled()
        for size in lengths.unique().tolist():
            streams = not learnt and can_stream(self.backbone, size)
            # Streams bound their memory themselves, by the threads that torch has.
            for rows in _rows_of(lengths, size, len(lengths) if streams else _rows_at_once(size)):
                part = None if weights is None else weights[rows, :size]
                pooled.append(self._pool(input_ids[rows, :size], part, streams=streams))
                order.append(rows)
        return torch.cat(pooled)[torch.cat(order).argsort()]

    def _pool(self, ids: Tensor, weights: Tensor | None, *, streams: bool) -> Tensor:
        if streams:
            shares = torch.ones_like(ids) if weights is None else weights
            return pool_streamed(self.backbone, ids, self.complement_map, shares)
        return pool_bases(self._run(ids), torch.ones_like(ids, dtype=torch.bool), weights)

    def _run(self, ids: Tensor) -> Tensor:
        if self.backbone.config.rcps:
            forward, other = self.backbone(ids).chunk(2, dim=-1)
            return torch.stack([forward, other.flip(-1)], dim=-1)
        other = self.backbone(self.complement_map[ids].flip(1)).flip(1)
        return torch.stack([self.backbone(ids), other], dim=-1)


def _window_lengths(ids: Tensor, mask: Tensor) -> Tensor:
    if ids.ndim != 2 or mask.shape != ids.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"input_ids and mask want one shape [B, L] and a bool mask; got {list(ids.shape)} "
            f"and {list(mask.shape)} of {mask.dtype}"
        )
    lengths = mask.sum(dim=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    if not bool((lengths > 0).all()) or not torch.equal(mask, positions < lengths[:, None]):
        raise ValueError(
            "each row of the mask wants True on its first bases (one at least) and False after: "
            "windows are padded on the right"
        )
    return lengths


def _rows_of(lengths: Tensor, size: int, at_once: int) -> tuple[Tensor, ...]:
    """Return the rows of one length, which need no padding, in parts."""
    return (lengths == size).nonzero()[:, 0].split(at_once)


def _rows_at_once(size: int) -> int:
    return max(1, _TOKENS_AT_ONCE // size)


def load_caduceus(
    weights: str | PathLike[str] | Weights | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> CaduceusEncoder:
    """Load a Caduceus encoder; the configuration decides between PS and Ph.

    Parameters
    ----------
    weights : str or path, optional
        Folder, file or hub id, see `encoders.weights.read_weights`; None for random weights.
    config : mapping, optional
        Upstream's constructor arguments. They go over the ``config.json`` beside the weights; for
        random weights over the published architecture (PS, 131k bases, 16 layers).
    revision, device, dtype, seed
        See `encoders.load_encoder`.

    Returns
    -------
    CaduceusEncoder

    Raises
    ------
    InputError
        No configuration, or one that does not fit this network or these weights.
    """
    return _load("caduceus", None, weights, config, revision, device, dtype, seed)


def load_caduceus_ps(
    weights: str | PathLike[str] | Weights | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> CaduceusEncoder:
    """Load Caduceus-PS (RC parameter sharing); arguments as `load_caduceus`."""
    return _load("caduceus_ps", True, weights, config, revision, device, dtype, seed)


def load_caduceus_ph(
    weights: str | PathLike[str] | Weights | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> CaduceusEncoder:
    """Load Caduceus-Ph (both strands run by themselves); arguments as `load_caduceus`."""
    return _load("caduceus_ph", False, weights, config, revision, device, dtype, seed)


def _load(
    name: str,
    rcps: bool | None,
    weights: str | PathLike[str] | Weights | None,
    config: Mapping[str, Any] | None,
    revision: str | None,
    device: str,
    dtype: str,
    seed: int,
) -> CaduceusEncoder:
    arithmetic = getattr(torch, dtype)
    if weights is None:
        network, identity = _random_network(name, rcps, config, seed), f"random(seed={seed})"
        digest = tensors_sha256(network.state_dict())
        network.set_dtype(arithmetic)
    else:
        checkpoint = read_weights(weights, revision=revision)
        network = _stored_network(name, rcps, config, checkpoint, arithmetic)
        identity, digest = checkpoint.id, checkpoint.sha256
    spec = _make_spec(name, network, identity, digest, config)
    return CaduceusEncoder(network, spec).to(device).eval()


def _random_network(
    name: str, rcps: bool | None, config: Mapping[str, Any] | None, seed: int
) -> CaduceusForMaskedLM:
    variant = {} if rcps is None else {"rcps": rcps}
    parsed = _parse(name, rcps, *config_values(None, {**variant, **(config or {})}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CaduceusForMaskedLM(parsed)


def _stored_network(
    name: str,
    rcps: bool | None,
    config: Mapping[str, Any] | None,
    checkpoint: Weights,
    arithmetic: torch.dtype,
) -> CaduceusForMaskedLM:
    parsed = _parse(name, rcps, *config_values(checkpoint, config))
    with torch.random.fork_rng(devices=[]):
        return load_network(parsed, checkpoint, arithmetic)


def _parse(name: str, rcps: bool | None, values: Mapping[str, Any], source: str) -> CaduceusConfig:
    parsed = CaduceusConfig.from_mapping(values, source=source)
    if rcps is not None and parsed.rcps != rcps:
        other = "caduceus_ps" if parsed.rcps else "caduceus_ph"
        raise InputError(
            Problem(
                "config-value",
                f"{source}: rcps",
                str(parsed.rcps).lower(),
                f"{str(rcps).lower()} for {name}",
                f"load it as {other}, or as caduceus",
            )
        )
    return parsed


def _make_spec(
    name: str,
    network: CaduceusForMaskedLM,
    identity: str,
    digest: str,
    config: Mapping[str, Any] | None,
) -> EncoderSpec:
    random = identity.startswith("random(")
    published = _PUBLISHED_NAME.search(identity)
    max_length_bp = PUBLISHED_LENGTHS_BP.get(published[1]) if published else None
    if random and not config:
        max_length_bp = PUBLISHED_LENGTHS_BP["131k"]
    return EncoderSpec(
        name=name,
        modality="dna",
        feature_dim=network.config.d_model,
        input=WindowInput(max_length_bp),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weights_id=identity,
        weights_sha256=digest,
        code_license="Apache-2.0",
        weight_license="none" if random else "Apache-2.0" if published else "NOASSERTION",
        pretraining_cohorts=() if random else ("human reference genome hg38",),
        paper=PAPER,
        config=network.config.as_upstream(),
    )
