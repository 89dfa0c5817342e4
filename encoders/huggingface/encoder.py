"""Networks of the transformers library as a `DnaEncoder`: windows in, strands' features out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from encoders.base import (
    DnaEncoder,
    EncoderSpec,
    TokenBatch,
    WindowInput,
    check_pooling_weights,
)
from encoders.errors import InputError, Problem
from encoders.huggingface.options import Options
from encoders.huggingface.probe import count_vocabulary
from encoders.huggingface.tokens import DnaTokenizer, Tokens
from encoders.huggingface.windows import pack, spell

NAME = "huggingface"
# Tokens run through the network at once: bounds memory, whatever the batch.
_TOKENS_AT_ONCE = 2**15


class HuggingFaceEncoder(DnaEncoder):
    """A network of the transformers library, run on a window and on its reverse complement.

    What `tokenize` gives is one number a base, whatever the tokenizer: each strand is tokenised
    when it is run, and its tokens' vectors laid over the bases they cover, so that position i of
    strand 1 lies over position i of strand 0. Special tokens are in no mean.

    Parameters
    ----------
    backbone : transformers.PreTrainedModel
        Its forward is made to return the chosen hidden state itself, [B, T, D].
    tokenizer : DnaTokenizer
    options : Options
        With `pooling` decided.
    spec : EncoderSpec
    max_tokens : int or None
        Most tokens of a strand, special ones included.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: DnaTokenizer,
        options: Options,
        spec: EncoderSpec,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.options = options
        self.spec = spec
        self.max_tokens = max_tokens
        library_network: Any = backbone
        self._vocabulary = count_vocabulary(backbone)
        self._masked = "attention_mask" in inspect.signature(backbone.forward).parameters
        self._padding_id = int(getattr(library_network.config, "pad_token_id", None) or 0)

    def tokenize(self, sequences: Sequence[str]) -> TokenBatch:
        """Turn DNA strings into numbers on the encoder's device; see `DnaEncoder.tokenize`.

        Anything but A, C, G and T, in either case, is read as N.

        Raises
        ------
        InputError
            A sequence is empty or longer than ``spec.input.max_length_bp``, or has more tokens
            than the network takes.
        """
        assert isinstance(self.spec.input, WindowInput)
        batch = pack(sequences, self.spec.input.max_length_bp)
        for strands in spell(*batch):
            if self.max_tokens is not None and len(strands[0]) >= self.max_tokens // 2:
                for strand in strands:
                    self._encode(strand)
        return TokenBatch(*(tensor.to(self._device) for tensor in batch))

    def hidden(
        self, input_ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length dim strand"]:
        """Hidden states of both strands, over forward positions.

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
        InputError
            The tokenizer does not tell which bases its tokens cover; a window that it cannot
            tokenise, or of too many tokens.
        ValueError
            Numbers or a mask that `tokenize` does not give.
        """
        self._want_bases("hidden states of bases")
        strands = self._tokens(input_ids, mask)
        hidden: Tensor | None = None
        for jobs, states in self._run(strands):
            if hidden is None:
                hidden = states.new_zeros(*input_ids.shape, states.shape[-1], 2)
            for job, vectors in zip(jobs, states, strict=True):
                row, strand = divmod(job, 2)
                length = int(mask[row].sum())
                over = _spread(vectors, strands[job], length)
                hidden[row, :length, :, strand] = over.flip(0) if strand else over
        assert hidden is not None
        return hidden

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        weights: Float[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch dim strand"]:
        """Weighted mean over real bases, or mean over tokens, for each strand.

        Parameters
        ----------
        input_ids, mask : Tensor [B, L]
            As `tokenize` gives them.
        weights : Tensor [B, L], optional
            Non-negative weight of each base; ones by default.

        Returns
        -------
        Tensor [B, D, 2]
            In float32 at least, whatever the network's arithmetic.

        Raises
        ------
        InputError
            Weights are given, and the tokenizer does not tell which bases its tokens cover; a
            window that it cannot tokenise, or of too many tokens.
        ValueError
            The weights of a window sum to zero; numbers or a mask that `tokenize` does not give.
        """
        if weights is not None:
            self._want_bases("weights of bases")
        strands = self._tokens(input_ids, mask)
        check_pooling_weights(mask, weights)
        shares = [
            tokens.weights(self._base_weights(mask, weights, *divmod(job, 2)))
            for job, tokens in enumerate(strands)
        ]
        order, pooled = [], []
        for jobs, states in self._run(strands):
            wide = states.to(torch.promote_types(states.dtype, torch.float32))
            share = torch.zeros(wide.shape[:2], dtype=wide.dtype)
            for row, job in enumerate(jobs):
                share[row, : len(shares[job])] = torch.from_numpy(shares[job])
            pooled.append(torch.einsum("btd,bt->bd", wide, share.to(wide.device)))
            order += jobs
        rows = torch.tensor(order, device=pooled[0].device).argsort()
        return torch.cat(pooled)[rows].unflatten(0, (-1, 2)).transpose(1, 2)

    @property
    def _device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def _want_bases(self, what: str) -> None:
        if self.options.pooling == "tokens":
            raise InputError(
                Problem(
                    "tokens-not-aligned",
                    f"encoder {NAME}",
                    f"{what} are wanted, and its features are means over tokens",
                    "a tokenizer that tells which bases its tokens cover, and pooling=bases",
                )
            )

    def _base_weights(
        self, mask: Tensor, weights: Tensor | None, row: int, strand: int
    ) -> np.ndarray | None:
        if self.options.pooling == "tokens":
            return None
        length = int(mask[row].sum())
        if weights is None:
            return np.ones(length)
        given = weights[row, :length].detach().to("cpu", torch.float64).numpy()
        return given[::-1] if strand else given

    def _tokens(self, input_ids: Tensor, mask: Tensor) -> list[Tokens]:
        """Tokenise both strands of each window: entry ``2 * row + strand``."""
        return [self._encode(strand) for both in spell(input_ids, mask) for strand in both]

    def _encode(self, strand: str) -> Tokens:
        tokens = self.tokenizer.encode(strand)
        problem: tuple[str, str, str, str] | None = None
        if self.max_tokens is not None and len(tokens.ids) > self.max_tokens:
            found, wanted = f"{len(tokens.ids):,} tokens", f"at most {self.max_tokens:,} tokens"
            problem = ("window-too-long", found, wanted, "use shorter windows (genome.length_bp)")
        elif tokens.ids.max() >= self._vocabulary:
            found, wanted = f"token {tokens.ids.max()}", f"ids below {self._vocabulary}"
            fix = "this tokenizer belongs to another network"
            problem = ("token-unknown-to-network", found, wanted, fix)
        elif self.options.pooling == "bases" and tokens.start is None:
            found, wanted = "a base that is in no token", "every base in a token"
            problem = ("tokens-not-aligned", found, wanted, "set pooling=tokens")
        if problem is not None:
            code, found, wanted, fix = problem
            raise InputError(Problem(code, f"window of {len(strand):,} bases", found, wanted, fix))
        return tokens

    def _run(self, strands: list[Tokens]) -> Iterator[tuple[list[int], Tensor]]:
        """Run strands together, and give their places in the list and hidden states [B, T, D]."""
        for jobs in _batches([len(tokens.ids) for tokens in strands], self.options.padding):
            longest = max(len(strands[job].ids) for job in jobs)
            ids = np.full((len(jobs), longest), self._padding_id, dtype=np.int64)
            attended = np.zeros(ids.shape, dtype=np.int64)
            for row, job in enumerate(jobs):
                ids[row, : len(strands[job].ids)] = strands[job].ids
                attended[row, : len(strands[job].ids)] = 1
            inputs = {"input_ids": torch.from_numpy(ids).to(self._device)}
            if self._masked:
                inputs["attention_mask"] = torch.from_numpy(attended).to(self._device)
            yield jobs, self.backbone(**inputs)


def _batches(lengths: list[int], padding: bool) -> Iterator[list[int]]:
    """Give the strands that run together: of equal length or padded, a bounded number of tokens."""
    batch: list[int] = []
    for job in sorted(range(len(lengths)), key=lambda job: (lengths[job], job)):
        size = lengths[job]
        full = (len(batch) + 1) * size > _TOKENS_AT_ONCE
        if batch and (full or (not padding and lengths[batch[0]] != size)):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _spread(vectors: Tensor, tokens: Tokens, length: int) -> Tensor:
    """Lay tokens' vectors [T, D] over bases [L, D]; where tokens overlap, their mean."""
    table = torch.from_numpy(tokens.table(length)).to(vectors.device)
    if table.shape[1] == 1:
        return vectors[table[:, 0]]
    over = table >= 0
    total = sum(
        (vectors[table[:, k].clamp(min=0)] * over[:, k, None] for k in range(table.shape[1])),
        start=torch.zeros((), dtype=vectors.dtype, device=vectors.device),
    )
    return total / over.sum(1, keepdim=True)
