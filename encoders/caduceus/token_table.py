"""Caduceus' tokens, their ids and parts: what needs no text to be encoded."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from encoders.caduceus.tokenizer import COMPLEMENT, PAD, SEP, UNK, VOCABULARY

SPECIAL_TOKENS: Mapping[str, str] = {
    "bos_token": "[BOS]",
    "eos_token": "[SEP]",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
TOKENS = {i: token for token, i in VOCABULARY.items()}
# [RESERVED] has an id, yet upstream does not look for it in text.
SPECIAL_IDS = sorted({VOCABULARY[token] for token in SPECIAL_TOKENS.values()})
_SPECIAL_PATTERN = re.compile("(" + "|".join(re.escape(TOKENS[i]) for i in SPECIAL_IDS) + ")")


class TokenTable:
    """Tokens and ids as upstream's tokenizer names them."""

    model_input_names = ("input_ids",)
    truncation_side = "right"
    is_fast = False
    vocab_size = len(VOCABULARY)
    bos_token, bos_token_id = "[BOS]", VOCABULARY["[BOS]"]
    eos_token, eos_token_id = "[SEP]", SEP
    unk_token, unk_token_id = "[UNK]", UNK
    sep_token, sep_token_id = "[SEP]", SEP
    pad_token, pad_token_id = "[PAD]", PAD
    cls_token, cls_token_id = "[CLS]", VOCABULARY["[CLS]"]
    mask_token, mask_token_id = "[MASK]", VOCABULARY["[MASK]"]
    pad_token_type_id = 0

    def __len__(self) -> int:
        """Return the number of tokens with a text; the network's embedding has more rows."""
        return len(VOCABULARY)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Special tokens by their part."""
        return dict(SPECIAL_TOKENS)

    @property
    def all_special_tokens(self) -> list[str]:
        """Special tokens, each once, by ascending id."""
        return [TOKENS[i] for i in SPECIAL_IDS]

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return list(SPECIAL_IDS)

    @property
    def complement_map(self) -> dict[int, int]:
        """Id of each token's complement; what is no A, C, G or T is its own."""
        return dict(COMPLEMENT)

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token."""
        return dict(VOCABULARY)

    def tokenize(self, text: str) -> list[str]:
        """Split text into special tokens (exact spelling) and upper-cased characters."""
        pieces = _SPECIAL_PATTERN.split(text)
        # Splitting at a group puts the special tokens at the odd places.
        return [
            token
            for place, piece in enumerate(pieces)
            for token in ([piece] if place % 2 else piece.upper())
        ]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int]:
        """Return the id of a token or of each of several; [UNK]'s for what is none."""
        return (
            token_id(tokens) if isinstance(tokens, str) else [token_id(token) for token in tokens]
        )

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """Return the token of an id or of each of several.

        Raises
        ------
        ValueError
            An id without a token, such as those of the embedding's padding rows.
        """
        if isinstance(ids, int):
            return _token(ids)
        kept = [int(i) for i in ids]
        return [_token(i) for i in kept if not (skip_special_tokens and i in SPECIAL_IDS)]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Join tokens without anything between them."""
        return "".join(tokens)

    def decode(self, token_ids: int | Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text behind ids; [UNK] stands for characters that had no token.

        Raises
        ------
        ValueError
            An id without a token.
        """
        ids = [token_ids] if isinstance(token_ids, int) else as_list(token_ids)
        return "".join(self.convert_ids_to_tokens(ids, skip_special_tokens))

    def batch_decode(
        self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = False
    ) -> list[str]:
        """Return the text behind each row of ids; raises as `decode`."""
        return [self.decode(row, skip_special_tokens) for row in sequences]


def token_id(token: str) -> int:
    """Return a token's id, [UNK]'s for what is none."""
    return VOCABULARY.get(token, UNK)


def _token(token_id: int) -> str:
    if token_id not in TOKENS:
        raise ValueError(f"id {token_id} has no token; ids are 0 to {len(TOKENS) - 1}")
    return TOKENS[token_id]


def as_list(ids: Any) -> list[int]:
    """Return ids of a list, array or tensor as plain numbers."""
    return ids.tolist() if hasattr(ids, "tolist") else [int(i) for i in ids]
