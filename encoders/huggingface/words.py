"""Tokenizers of the transformers library on DNA: characters, k-mers, byte pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from encoders.errors import InputError, Problem
from encoders.huggingface.tokens import Tokens, cover_all, no_tokens


class LibraryTokenizer:
    """A tokenizer of the transformers library, with the bases that each token covers.

    Fast tokenizers tell which characters a token came from. Of the others, tokens spell their
    bases: where the tokens of a sequence, joined, are the sequence, each covers what it spells,
    and an unknown token one base.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    kmer, kmer_stride : int or None, int
        See `encoders.huggingface.options.Options`.
    """

    def __init__(self, tokenizer: Any, kmer: int | None = None, kmer_stride: int = 1) -> None:
        self.tokenizer = tokenizer
        self.kmer = kmer
        self.kmer_stride = kmer_stride
        # An unknown token stands for bases, whatever the library calls it.
        self._special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    def encode(self, sequence: str) -> Tokens:
        """Tokenise one strand; see `encoders.huggingface.tokens.DnaTokenizer`."""
        starts = self._word_starts(sequence)
        text = sequence
        if starts is not None:
            text = " ".join(sequence[start : start + (self.kmer or 0)] for start in starts)
        fast = bool(self.tokenizer.is_fast)
        encoded = self.tokenizer(
            text,
            return_attention_mask=False,
            return_offsets_mapping=fast,
            return_special_tokens_mask=fast,
            verbose=False,
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        if fast:
            real = np.asarray(encoded["special_tokens_mask"]) == 0
        else:
            real = ~np.isin(ids, list(self._special))
        if not real.any():
            raise no_tokens(sequence)
        spans: tuple[np.ndarray, np.ndarray] | None
        if starts is not None:
            spans = self._word_spans(starts, real)
        elif fast:
            spans = _offset_spans(encoded["offset_mapping"], real)
        else:
            spans = self._spelt_spans(ids, real, sequence)
        if spans is None or not cover_all(*spans, len(sequence)):
            return Tokens(ids, real)
        return Tokens(ids, real, *spans)

    def count_unknown(self, tokens: Tokens) -> int:
        """Return how many of a sequence's tokens are the unknown token."""
        return int((tokens.ids[tokens.real] == self.tokenizer.unk_token_id).sum())

    def _word_starts(self, sequence: str) -> np.ndarray | None:
        if self.kmer is None:
            return None
        last = len(sequence) - self.kmer
        if last < 0:
            raise InputError(
                Problem(
                    "window-too-short",
                    f"window of {len(sequence):,} bases",
                    f"shorter than a word of {self.kmer} (config: kmer)",
                    f"{self.kmer} bases at least",
                )
            )
        starts = np.arange(0, last + 1, self.kmer_stride)
        return starts if starts[-1] == last else np.append(starts, last)

    def _word_spans(self, starts: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if real.sum() != len(starts):
            found = f"{len(starts):,} words of {self.kmer} bases became {real.sum():,} tokens"
            raise InputError(
                Problem(
                    "kmer-split",
                    "config: kmer",
                    found,
                    "one token a word",
                    "set kmer to the length of the tokenizer's words",
                )
            )
        start = np.zeros(len(real), dtype=np.int64)
        start[real] = starts
        return start, start + real * int(self.kmer or 0)

    def _spelt_spans(
        self, ids: np.ndarray, real: np.ndarray, sequence: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        unknown = self.tokenizer.unk_token_id
        spelt = [
            "?" if token == unknown else str(text)
            for token, text in zip(
                ids[real].tolist(),
                self.tokenizer.convert_ids_to_tokens(ids[real].tolist()),
                strict=True,
            )
        ]
        joined = "".join(spelt).upper()
        if len(joined) != len(sequence) or any(
            mine not in (base, "?") for mine, base in zip(joined, sequence, strict=True)
        ):
            return None
        sizes = np.zeros(len(ids), dtype=np.int64)
        sizes[real] = [len(text) for text in spelt]
        end = np.cumsum(sizes)
        return end - sizes, end


def _offset_spans(
    offsets: list[tuple[int, int]], real: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    start, end = np.asarray(offsets, dtype=np.int64).T
    return np.where(real, start, 0), np.where(real, end, 0)
