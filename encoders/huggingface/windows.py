"""Windows as one small number a base, from which both strands are spelt again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from encoders.base import TokenBatch
from encoders.errors import InputError, Problem

LETTERS = "ACGTN"
_COMPLEMENT = np.array([3, 2, 1, 0, 4])
_SPELLING = np.frombuffer(LETTERS.encode(), dtype=np.uint8)
# Whatever is no A, C, G or T in either case, ambiguity codes included, is read as N.
_CODES = np.full(256, LETTERS.index("N"), dtype=np.int64)
for _code, _letter in enumerate(LETTERS):
    _CODES[[ord(_letter), ord(_letter.lower())]] = _code


def pack(sequences: Sequence[str], max_length_bp: int | None) -> TokenBatch:
    """Turn windows into numbers: A 0, C 1, G 2, T 3, all else 4 (N); padding is N too.

    Raises
    ------
    InputError
        Lists all windows that are empty or too long.
    """
    problems = [] if sequences else [_problem("no-windows", 0, "none", "at least one sequence")]
    for row, sequence in enumerate(sequences):
        if not sequence:
            problems.append(_problem("window-empty", row, "no bases", "at least one base"))
        elif max_length_bp is not None and len(sequence) > max_length_bp:
            found = f"{len(sequence):,} bases"
            wanted = f"at most {max_length_bp:,}, the longest this encoder takes"
            problems.append(_problem("window-too-long", row, found, wanted))
    if problems:
        raise InputError(problems)
    codes = np.full((len(sequences), max(map(len, sequences))), 4, dtype=np.int64)
    mask = np.zeros(codes.shape, dtype=bool)
    for row, sequence in enumerate(sequences):
        letters = np.frombuffer(sequence.encode("latin-1", errors="replace"), dtype=np.uint8)
        codes[row, : len(sequence)] = _CODES[letters]
        mask[row, : len(sequence)] = True
    return TokenBatch(torch.from_numpy(codes), torch.from_numpy(mask))


def spell(
    input_ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
) -> list[tuple[str, str]]:
    """Spell each window and its reverse complement.

    Raises
    ------
    ValueError
        Numbers that `pack` does not give; a mask that does not fit, or is not True on the first
        bases of each row and False after.
    """
    if input_ids.ndim != 2 or mask.shape != input_ids.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"input_ids and mask want one shape [B, L] and a bool mask; got "
            f"{list(input_ids.shape)} and {list(mask.shape)} of {mask.dtype}"
        )
    codes, real = input_ids.cpu().numpy(), mask.cpu().numpy()
    lengths = real.sum(1)
    if (lengths == 0).any() or (real != (np.arange(real.shape[1]) < lengths[:, None])).any():
        raise ValueError(
            "each row of the mask wants True on its first bases (one at least) and False after: "
            "windows are padded on the right"
        )
    if not ((codes >= 0) & (codes < len(LETTERS))).all():
        raise ValueError("input_ids want the numbers that tokenize gives: 0 to 4")
    rows = [row[:length] for row, length in zip(codes, lengths, strict=True)]
    return [(_text(row), _text(_COMPLEMENT[row][::-1])) for row in rows]


def _text(codes: np.ndarray) -> str:
    return _SPELLING[codes].tobytes().decode()


def _problem(code: str, row: int, found: str, wanted: str) -> Problem:
    fix = "use shorter windows (leave room for insertions)" if code == "window-too-long" else ""
    where = "sequences" if code == "no-windows" else f"sequence {row + 1}"
    return Problem(code, where, found, wanted, fix)
