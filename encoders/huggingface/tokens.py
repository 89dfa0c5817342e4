"""Tokens of one strand, and the bases that each of them covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float64, Int64

from encoders.errors import InputError, Problem


@dataclass(frozen=True)
class Tokens:
    """One strand of one window as the network reads it.

    Parameters
    ----------
    ids : ndarray [T] int64
        Special tokens included.
    real : ndarray [T] bool
        False on special tokens.
    start, end : ndarray [T] int64, or None
        Bases ``start <= i < end`` are a token's; none for special tokens. None where the
        tokenizer does not tell, or leaves a base out.
    """

    ids: Int64[np.ndarray, " token"]
    real: Bool[np.ndarray, " token"]
    start: Int64[np.ndarray, " token"] | None = None
    end: Int64[np.ndarray, " token"] | None = None

    def pairs(self) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"]]:
        """Return token and base of every pair of a token and a base that it covers."""
        assert self.start is not None
        assert self.end is not None
        sizes = self.end - self.start
        token = np.repeat(np.arange(len(sizes)), sizes)
        within = np.arange(len(token)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return token, self.start[token] + within

    def weights(self, bases: Float64[np.ndarray, " base"] | None) -> Float64[np.ndarray, " token"]:
        """Return each token's share in the mean of a strand; they sum to one.

        Parameters
        ----------
        bases : ndarray [L], optional
            Weight of each base; a base's weight is shared equally by the tokens over it. None to
            give every real token the same share.
        """
        if bases is None:
            return self.real / self.real.sum()
        token, base = self.pairs()
        share = bases / np.bincount(base, minlength=len(bases))
        tokens = np.bincount(token, weights=share[base], minlength=len(self.ids))
        return tokens / tokens.sum()

    def table(self, length: int) -> Int64[np.ndarray, "base cover"]:
        """Return the tokens over each base, -1 where a base has fewer than the most."""
        token, base = self.pairs()
        order = np.argsort(base, kind="stable")
        cover = np.bincount(base, minlength=length)
        rank = np.arange(len(base)) - np.repeat(np.cumsum(cover) - cover, cover)
        table = np.full((length, cover.max()), -1, dtype=np.int64)
        table[base[order], rank] = token[order]
        return table


class DnaTokenizer(Protocol):
    """What the encoder asks of a tokenizer."""

    def encode(self, sequence: str) -> Tokens:
        """Tokenise one strand of A, C, G, T and N.

        Raises
        ------
        InputError
            The sequence cannot be tokenised.
        """
        ...


def cover_all(
    start: Int64[np.ndarray, " token"], end: Int64[np.ndarray, " token"], length: int
) -> bool:
    """Tell whether spans are inside a sequence and leave none of its bases out."""
    if (start < 0).any() or (end < start).any() or (end > length).any():
        return False
    steps = np.zeros(length + 1, dtype=np.int64)
    np.add.at(steps, start, 1)
    np.add.at(steps, end, -1)
    return bool((np.cumsum(steps)[:length] > 0).all())


def no_tokens(sequence: str) -> InputError:
    """Return the error for a window that the tokenizer makes nothing of."""
    shown = sequence if len(sequence) <= 12 else f"{sequence[:12]}..."
    return InputError(
        Problem(
            "window-without-tokens",
            f"window of {len(sequence):,} bases ({shown})",
            "the tokenizer makes no token of it",
            "at least one token",
            "leave windows of nothing but N out",
        )
    )
