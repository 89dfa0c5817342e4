"""Caduceus' tokenizer with the calls of a Hugging Face one, and without that library.

What it returns is what upstream's ``CaduceusTokenizer`` (kuleshov-group/caduceus,
``tokenization_caduceus.py``) returns under transformers 4.38, its surprises included: [SEP] at the
end and no [CLS] or [BOS], padding on the left, no attention mask unless asked for. The network
takes no mask either, so [SEP] and padding are input like any other and change what real bases get.
`encoders.caduceus.tokenizer.tokenize_windows`, which features are made with, adds neither.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from encoders.atomic import write_json
from encoders.caduceus.token_table import (
    SPECIAL_IDS,
    SPECIAL_TOKENS,
    TOKENS,
    TokenTable,
    as_list,
    token_id,
)
from encoders.caduceus.tokenizer import PAD, SEP
from encoders.errors import InputError, Problem

Padding = bool | Literal["longest", "max_length", "do_not_pad"]

CONFIG_FILE, SPECIAL_TOKENS_FILE = "tokenizer_config.json", "special_tokens_map.json"
# What pads each list a call can return.
_FILLERS = {"input_ids": PAD, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}


class Encoded(dict[str, Any]):
    """What a call returns: lists or tensors by name, also as attributes."""

    def __getattr__(self, name: str) -> Any:
        """Return the entry `name`."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: str | torch.device) -> "Encoded":
        """Move all tensors to a device, in place."""
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                self[name] = value.to(device)
        return self


class CaduceusTokenizer(TokenTable):
    """One token a base, as upstream's class of this name.

    Parameters
    ----------
    model_max_length : int
        Tokens that ``truncation=True`` and ``padding="max_length"`` take for `max_length` where a
        call gives none; by itself it cuts nothing.
    padding_side : {"left", "right"}
        Where padding goes; upstream's is the left.

    Raises
    ------
    ValueError
        A length below 1, or another side.
    """

    def __init__(
        self,
        model_max_length: int = 131_072,
        *,
        padding_side: Literal["left", "right"] = "left",
    ) -> None:
        if model_max_length < 1:
            raise ValueError(f"model_max_length is {model_max_length}; it must be at least 1")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}; it must be 'left' or 'right'")
        self.model_max_length = model_max_length
        self.padding_side = padding_side

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens a text, or a pair, gets."""
        return 2 if pair else 1

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Append [SEP] to the ids of a text, or of each text of a pair."""
        first = [*token_ids_0, SEP]
        return first if token_ids_1 is None else [*first, *token_ids_1, SEP]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for each special token: of finished ids, or of what would be appended."""
        if already_has_special_tokens:
            return [int(i in SPECIAL_IDS) for i in token_ids_0]
        first = [0] * len(token_ids_0) + [1]
        return first if token_ids_1 is None else first + [0] * len(token_ids_1) + [1]

    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: bool | None = None,
        max_length: int | None = None,
    ) -> list[int]:
        """Return the ids of a text, or of a pair; arguments and errors as a call's."""
        encoded = self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
        )
        ids: list[int] = encoded["input_ids"]
        return ids

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: bool | None = None,
        max_length: int | None = None,
        return_tensors: Literal["pt", "np"] | None = None,
        return_attention_mask: bool = False,
        return_token_type_ids: bool = False,
        return_special_tokens_mask: bool = False,
    ) -> Encoded:
        """Encode a text or several.

        Parameters
        ----------
        text, text_pair : str or sequence of str
            DNA in either case; anything but A, C, G, T, N becomes [UNK].
        add_special_tokens : bool
            Whether to append [SEP] to each text, as upstream does unless told otherwise.
        padding : bool or {"longest", "max_length", "do_not_pad"}
            Pad with [PAD] to the longest of the batch (also True), or to `max_length`.
        truncation : bool, optional
            Whether to cut to `max_length`: bases from the right, of a pair the longer text first;
            special tokens stay. By default only where `max_length` is given and not for padding.
        max_length : int, optional
            In tokens, special ones included; `model_max_length` where one is needed.
        return_tensors : {"pt", "np"}, optional
            torch tensors or numpy arrays [B, L] rather than lists.
        return_attention_mask, return_token_type_ids, return_special_tokens_mask : bool
            What to return beside ``input_ids``. Token types count bases alone, as upstream's, and
            so are shorter than the ids.

        Returns
        -------
        Encoded
            Flat lists for one text without `return_tensors`.

        Raises
        ------
        ValueError
            `max_length` without room for the special tokens, an unknown `padding`, texts and pairs
            of different number, or tensors of unequal rows.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pairs = _pairs_for(texts, text_pair)
        limit = None
        if truncation or (truncation is None and max_length is not None and not padding):
            limit = self.model_max_length if max_length is None else max_length
        rows = [
            self._encode_one(one, other, add_special_tokens, limit)
            for one, other in zip(texts, pairs, strict=True)
        ]
        wanted = {
            "input_ids": True,
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask,
        }
        columns = {name: [row[name] for row in rows] for name, yes in wanted.items() if yes}
        padded = self._pad(columns, self._target(columns["input_ids"], padding, max_length))
        if return_tensors is None and isinstance(text, str):
            return Encoded({name: values[0] for name, values in padded.items()})
        return Encoded(_as_tensors(padded, return_tensors))

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: Padding = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: Literal["pt", "np"] | None = None,
    ) -> Encoded:
        """Pad what calls returned, as data collators do; arguments as a call's.

        Parameters
        ----------
        encoded_inputs : mapping, or sequence of mappings
            A batch, or its rows.
        pad_to_multiple_of : int, optional
            Round the padded length up to a multiple of this.
        """
        if not isinstance(encoded_inputs, Mapping):
            names = encoded_inputs[0]
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in names}
        columns = {
            name: [as_list(row) for row in values] if name in _FILLERS else list(values)
            for name, values in encoded_inputs.items()
        }
        target = self._target(columns["input_ids"], padding, max_length)
        if pad_to_multiple_of:
            target = -(-target // pad_to_multiple_of) * pad_to_multiple_of
        return Encoded(_as_tensors(self._pad(columns, target), return_tensors))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write ``tokenizer_config.json`` and ``special_tokens_map.json`` as upstream does.

        Returns
        -------
        tuple of str
            The files written; the vocabulary is fixed and has none.
        """
        where = Path(folder)
        added = {
            str(i): {"content": TOKENS[i], "lstrip": False, "normalized": False}
            | {"rstrip": False, "single_word": False, "special": True}
            for i in SPECIAL_IDS
        }
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "clean_up_tokenization_spaces": True,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "tokenizer_class": "CaduceusTokenizer",
            **SPECIAL_TOKENS,
        }
        files: dict[str, Mapping[str, Any]]
        files = {CONFIG_FILE: config, SPECIAL_TOKENS_FILE: SPECIAL_TOKENS}
        for name, values in files.items():
            write_json(where / name, values)
        return tuple(str(where / name) for name in files)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "CaduceusTokenizer":
        """Read what `save_pretrained`, or upstream, wrote.

        Raises
        ------
        InputError
            No readable ``tokenizer_config.json``, or one of another tokenizer.
        """
        path = Path(folder) / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            wanted = "the tokenizer_config.json beside the weights"
            raise InputError(Problem("tokenizer-file", str(path), str(error), wanted)) from error
        problems = _find_misfits(values, path)
        if problems:
            raise InputError(problems)
        length = int(values.get("model_max_length", 131_072))
        return cls(length, padding_side=values.get("padding_side", "left"))

    def _encode_one(
        self, text: str, text_pair: str | None, add_special_tokens: bool, limit: int | None
    ) -> dict[str, list[int]]:
        parts = (text,) if text_pair is None else (text, text_pair)
        letters = [[token_id(token) for token in self.tokenize(part)] for part in parts]
        if limit is not None:
            letters = _cut(letters, limit - len(letters) * add_special_tokens)
        ids = [i for part in letters for i in part]
        types = [0] * len(ids)
        specials = [0] * len(ids)
        if add_special_tokens:
            first, second = letters[0], letters[1] if len(letters) == 2 else None
            ids = self.build_inputs_with_special_tokens(first, second)
            types = [0] * len(first) + [1] * len(second or ())
            specials = self.get_special_tokens_mask(first, second)
        return {
            "input_ids": ids,
            "token_type_ids": types,
            "attention_mask": [1] * len(ids),
            "special_tokens_mask": specials,
        }

    def _target(self, rows: list[list[int]], padding: Padding, max_length: int | None) -> int:
        """Return the length to pad to; 0 for no padding."""
        if padding in (False, "do_not_pad"):
            return 0
        if padding in (True, "longest"):
            return max(map(len, rows), default=0)
        if padding == "max_length":
            return self.model_max_length if max_length is None else max_length
        raise ValueError(f"padding is {padding!r}; it must be a bool, 'longest' or 'max_length'")

    def _pad(self, columns: Mapping[str, list[Any]], target: int) -> dict[str, list[Any]]:
        pads = [max(target - len(ids), 0) for ids in columns["input_ids"]]
        left = self.padding_side == "left"
        return {
            name: [
                [_FILLERS[name]] * n + row if left else row + [_FILLERS[name]] * n
                for row, n in zip(rows, pads, strict=True)
            ]
            if name in _FILLERS
            else rows
            for name, rows in columns.items()
        }


def _cut(letters: list[list[int]], room: int) -> list[list[int]]:
    """Take letters from the right of the longest part (of equals, the last) until they fit."""
    if room < 0:
        raise ValueError("max_length leaves no room for the special tokens")
    letters = [list(part) for part in letters]
    for _ in range(sum(map(len, letters)) - room):
        max(reversed(letters), key=len).pop()
    return letters


def _pairs_for(texts: Sequence[str], text_pair: str | Sequence[str] | None) -> Sequence[str | None]:
    if text_pair is None:
        return [None] * len(texts)
    pairs = [text_pair] if isinstance(text_pair, str) else list(text_pair)
    if len(pairs) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(pairs)} pairs; each text wants one")
    return pairs


def _as_tensors(columns: dict[str, list[Any]], kind: str | None) -> dict[str, Any]:
    if kind is None:
        return columns
    if kind not in ("pt", "np"):
        raise ValueError(f"return_tensors is {kind!r}; it must be 'pt' or 'np'")
    try:
        arrays = {name: np.asarray(rows, dtype=np.int64) for name, rows in columns.items()}
    except ValueError as error:
        raise ValueError("rows of unequal length make no tensor; give padding=True") from error
    if kind == "np":
        return arrays
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _find_misfits(values: object, path: Path) -> list[Problem]:
    """Find what shows that a tokenizer's configuration is another's, or wrong."""
    if not isinstance(values, dict):
        return [Problem("json-not-object", str(path), type(values).__name__, "a JSON object {...}")]
    wanted = {"tokenizer_class": "CaduceusTokenizer", **SPECIAL_TOKENS}
    problems = [
        Problem("tokenizer-other", f"{path}: {name}", repr(values[name]), repr(value))
        for name, value in wanted.items()
        if name in values and values[name] != value
    ]
    side, length = values.get("padding_side", "left"), values.get("model_max_length", 1)
    if side not in ("left", "right"):
        problems.append(
            Problem("tokenizer-value", f"{path}: padding_side", repr(side), "left or right")
        )
    if isinstance(length, bool) or not isinstance(length, int | float) or length < 1:
        where = f"{path}: model_max_length"
        problems.append(Problem("tokenizer-value", where, repr(length), "a positive number"))
    return problems
