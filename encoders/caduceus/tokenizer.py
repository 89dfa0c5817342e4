"""Caduceus' vocabulary, and windows turned into its ids, one a base.

`encoders.caduceus.character_tokenizer` has upstream's tokenizer with all it does beside.
"""

from collections.abc import Mapping, Sequence

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
_OTHER_STRAND = str.maketrans("ACGTacgt", "TGCAtgca")
_BYTE_TO_ID = np.full(256, UNK, dtype=np.int64)
for _letter, _id in _LETTERS.items():
    _BYTE_TO_ID[[ord(_letter), ord(_letter.lower())]] = _id


def reverse_complement(sequence: str) -> str:
    """Return the other strand as it reads, case kept; letters but A, C, G, T are their own."""
    return sequence.translate(_OTHER_STRAND)[::-1]


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
