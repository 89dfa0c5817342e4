"""Caduceus' character tokenizer: upstream's behaviour, and a fast path for plain sequences."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from encoders.base import TokenBatch
from encoders.errors import InputError, Problem

VOCABULARY: Mapping[str, int] = {
    "[CLS]": 0,
    "[SEP]": 1,
    "[BOS]": 2,
    "[MASK]": 3,
    "[PAD]": 4,
    "[RESERVED]": 5,
    "[UNK]": 6,
    "A": 7,
    "C": 8,
    "G": 9,
    "T": 10,
    "N": 11,
}
SEP, PAD, UNK = (VOCABULARY[token] for token in ("[SEP]", "[PAD]", "[UNK]"))
COMPLEMENT: Mapping[int, int] = {i: i for i in VOCABULARY.values()} | {7: 10, 8: 9, 9: 8, 10: 7}

_LETTERS = {token: i for token, i in VOCABULARY.items() if len(token) == 1}
_TOKENS = {i: token for token, i in VOCABULARY.items()}
# [RESERVED] has an id, yet upstream does not look for it in text.
_SPECIAL = [token for token in VOCABULARY if len(token) > 1 and token != "[RESERVED]"]
_SPECIAL_PATTERN = re.compile("(" + "|".join(map(re.escape, _SPECIAL)) + ")")

_BYTE_TO_ID = np.full(256, UNK, dtype=np.int64)
for _letter, _id in _LETTERS.items():
    _BYTE_TO_ID[[ord(_letter), ord(_letter.lower())]] = _id


class CaduceusTokenizer:
    """One token a base; a class of its own so that nothing of transformers is needed.

    Parameters
    ----------
    padding_side : {"left", "right"}
        Where padding goes; upstream's default is the left.
    """

    def __init__(self, padding_side: Literal["left", "right"] = "left") -> None:
        self.padding_side = padding_side

    def tokenize(self, text: str) -> list[str]:
        """Split text into special tokens (exact spelling) and upper-cased characters."""
        pieces = _SPECIAL_PATTERN.split(text)
        # Splitting at a group puts the special tokens at the odd places.
        return [
            token
            for place, piece in enumerate(pieces)
            for token in ([piece] if place % 2 else piece.upper())
        ]

    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
    ) -> list[int]:
        """Return the ids of a text, or of a pair, each followed by [SEP].

        Parameters
        ----------
        text, text_pair : str
            DNA; anything but A, C, G, T, N in either case becomes [UNK].
        add_special_tokens : bool
            Whether to append [SEP], as upstream does unless told otherwise.
        max_length : int, optional
            Cut the text (not the [SEP]) so that no more tokens remain; for single texts.

        Raises
        ------
        ValueError
            `max_length` with a pair, or too short for the special tokens.
        """
        specials = int(add_special_tokens)
        if max_length is not None and (text_pair is not None or max_length < specials):
            raise ValueError("max_length wants a single text and room for its [SEP]")
        room = None if max_length is None else max_length - specials
        ids: list[int] = []
        for part in (text,) if text_pair is None else (text, text_pair):
            letters = [VOCABULARY.get(token, UNK) for token in self.tokenize(part)]
            ids += letters[:room] + [SEP] * specials
        return ids

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        padding: Literal["longest", "max_length"] | None = None,
        max_length: int | None = None,
        truncation: bool = False,
        add_special_tokens: bool = True,
    ) -> dict[str, list[list[int]]]:
        """Return ``input_ids``, ``attention_mask`` and ``special_tokens_mask`` of several texts.

        Parameters
        ----------
        texts : sequence of str
        padding : {"longest", "max_length"}, optional
            Pad with [PAD] to the longest text, or to `max_length`; by default not at all.
        max_length : int, optional
            Length for padding and truncation, in tokens.
        truncation : bool
            Cut what is longer than `max_length`.
        add_special_tokens : bool
            Append [SEP] to each text.

        Raises
        ------
        ValueError
            `max_length` is needed and not given.
        """
        if max_length is None and (truncation or padding == "max_length"):
            raise ValueError("padding to max_length and truncation want max_length")
        limit = max_length if truncation else None
        encoded = [
            self.encode(text, add_special_tokens=add_special_tokens, max_length=limit)
            for text in texts
        ]
        lengths = [len(ids) for ids in encoded]
        target = {None: 0, "longest": max(lengths, default=0), "max_length": max_length or 0}
        pads = [max(target[padding] - length, 0) for length in lengths]
        ends = [
            [0] * (length - add_special_tokens) + [1] * add_special_tokens for length in lengths
        ]
        return {
            "input_ids": self._pad(encoded, pads, PAD),
            "attention_mask": self._pad([[1] * length for length in lengths], pads, 0),
            "special_tokens_mask": self._pad(ends, pads, 1),
        }

    def _pad(self, rows: list[list[int]], pads: list[int], value: int) -> list[list[int]]:
        if self.padding_side == "left":
            return [[value] * n + row for row, n in zip(rows, pads, strict=True)]
        return [row + [value] * n for row, n in zip(rows, pads, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text behind ids; [UNK] stands for characters that had no token."""
        return "".join(_TOKENS[int(i)] for i in ids)


def encode_bases(sequence: str) -> Int64[np.ndarray, " length"]:
    """Return the ids of a DNA string, one a character, without special tokens."""
    # Latin-1 with "?" for the rest keeps one byte a character; all of those become [UNK].
    return _BYTE_TO_ID[np.frombuffer(sequence.encode("latin-1", errors="replace"), dtype=np.uint8)]


def tokenize_windows(sequences: Sequence[str], *, max_length_bp: int | None = None) -> TokenBatch:
    """Tokenise DNA windows without [SEP], padded on the right, with a mask.

    Parameters
    ----------
    sequences : sequence of str
        At least one; letters in either case.
    max_length_bp : int, optional
        Longest window allowed, in bases.

    Raises
    ------
    InputError
        Lists all windows that are empty or too long.
    """
    problems = []
    for row, sequence in enumerate(sequences):
        if not sequence:
            problems.append(
                Problem("window-empty", f"sequence {row + 1}", "no bases", "at least one base")
            )
        elif max_length_bp is not None and len(sequence) > max_length_bp:
            problems.append(
                Problem(
                    "window-too-long",
                    f"sequence {row + 1}",
                    f"{len(sequence):,} bases",
                    f"at most {max_length_bp:,}, the length this encoder was trained at",
                    "use shorter windows (leave room for insertions)",
                )
            )
    if not sequences:
        problems.append(Problem("no-windows", "sequences", "none", "at least one sequence"))
    if problems:
        raise InputError(problems)
    ids = np.full((len(sequences), max(map(len, sequences))), PAD, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = encode_bases(sequence)
        mask[row, : len(sequence)] = True
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(mask))
