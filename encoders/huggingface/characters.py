"""A tokenizer of one token a base, for networks that come without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from encoders.errors import InputError, Problem
from encoders.huggingface.tokens import Tokens

LETTERS = "ACGTN"
# The lowest ids are what most networks keep for padding, start, end and unknown tokens.
DEFAULT: Mapping[str, Any] = {"letters": {letter: 4 + i for i, letter in enumerate(LETTERS)}}


@dataclass(frozen=True)
class CharacterTokenizer:
    """One token a base, with tokens of choice around.

    Parameters
    ----------
    letters : dict of str to int
        Ids of A, C, G, T and N.
    before, after : tuple of int
        Special tokens in front of a sequence and behind it.
    """

    letters: Mapping[str, int]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> CharacterTokenizer:
        """Read ``{"letters": {"A": 4, ..., "N": 8}, "before": [1], "after": [2]}``.

        Raises
        ------
        InputError
            Every key that is unknown and every value that does not fit.
        """
        problems = [
            Problem("config-unknown", f"config: tokenizer.{key}", "no such setting", _KEYS)
            for key in values
            if key not in ("letters", "before", "after")
        ]
        letters = values.get("letters")
        if not _are_letters(letters):
            wanted = "a different id (0 or above) for each of A, C, G, T, N"
            problems.append(Problem("config-value", _PLACE + "letters", repr(letters), wanted))
        for key in ("before", "after"):
            if not _are_ids(values.get(key, ())):
                found, wanted = repr(values[key]), "a list of token ids (0 or above)"
                problems.append(Problem("config-value", _PLACE + key, found, wanted))
        if problems:
            raise InputError(problems)
        assert letters is not None
        around = (tuple(values.get(key, ())) for key in ("before", "after"))
        return cls({letter: letters[letter] for letter in LETTERS}, *around)

    def encode(self, sequence: str) -> Tokens:
        """Tokenise one strand; see `encoders.huggingface.tokens.DnaTokenizer`."""
        front, back = len(self.before), len(self.after)
        ids = [*self.before, *(self.letters[letter] for letter in sequence), *self.after]
        start = np.zeros(len(ids), dtype=np.int64)
        start[front : len(ids) - back] = np.arange(len(sequence))
        real = np.zeros(len(ids), dtype=bool)
        real[front : len(ids) - back] = True
        return Tokens(np.array(ids, dtype=np.int64), real, start, start + real)


_KEYS = "letters, before, after"
_PLACE = "config: tokenizer."


def _are_ids(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(_is_id(value) for value in values)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_letters(values: Any) -> bool:
    if not isinstance(values, Mapping) or set(values) != set(LETTERS):
        return False
    ids = list(values.values())
    return all(_is_id(value) for value in ids) and len(set(ids)) == len(ids)
