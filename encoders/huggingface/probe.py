"""What a tokenizer and a network can do with DNA, found out before any window is encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from encoders.errors import InputError, Problem
from encoders.huggingface.options import Options
from encoders.huggingface.tokens import DnaTokenizer, Tokens
from encoders.huggingface.words import LibraryTokenizer
from encoders.torch_files import first_line

# A De Bruijn-like stretch: all letters, repeats, longer than the 100 characters after which some
# tokenizers make one unknown token of a word.
PROBE = (
    "ACGTTGCATGACCTGATTACAGGCTTAAACCCGGGTTTACGATCGATTGCCAATATGCGCTAGCTAGGATCCAAGCTTCATGTACCGGTATC"
    "GATAGTCCCCTTTTGGGGAAAACTCTGAGAGTGTCACACGTGACTGACGGTCATTTCGAGCATTAGGCAACTTGTAAGCGCCTATAGACGAT"
    "CCGTATTGACCAGTTAGCAATCGGCTACATGTTCGCAGAATTCTGGCCTAAC"
)
_PROBE_WITH_N = PROBE[:120] + "N" + PROBE[121:131] + "NNNNNNN" + PROBE[138:]
# Tokenizers say "no limit" by a number with thirty zeros.
_NO_LIMIT = 10**9


def find_pooling(tokenizer: DnaTokenizer, options: Options) -> str:
    """Return whether features are means over bases or over tokens.

    Raises
    ------
    InputError
        The tokenizer does not know DNA; means over bases are wanted, and it does not tell which
        bases a token covers.
    """
    plain = tokenizer.encode(PROBE)
    if isinstance(tokenizer, LibraryTokenizer) and tokenizer.count_unknown(plain):
        raise InputError(_unknown(tokenizer, plain))
    for letter in "ACGT":
        # A letter that a tokenizer passes over has no tokens, and raises.
        tokenizer.encode(letter * max(8, getattr(tokenizer, "kmer", None) or 0))
    aligned = plain.start is not None and tokenizer.encode(_PROBE_WITH_N).start is not None
    if options.pooling == "bases" and not aligned:
        raise InputError(
            Problem(
                "tokens-not-aligned",
                "config: pooling",
                "bases, and the tokenizer does not tell which bases each of its tokens covers",
                "tokens",
                "or describe a tokenizer of one token a base by the setting tokenizer",
            )
        )
    return options.pooling or ("bases" if aligned else "tokens")


def find_max_tokens(network: nn.Module, tokenizer: DnaTokenizer) -> int | None:
    """Return the most tokens a window may have, special ones included; None for no limit."""
    config: Any = network.config
    limits = [getattr(config, "max_position_embeddings", None)]
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            # Positions begin behind the padding's where there is one.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first)
    if isinstance(tokenizer, LibraryTokenizer):
        limits.append(int(min(tokenizer.tokenizer.model_max_length, _NO_LIMIT)))
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
    return min(known) if known else None


def find_max_bases(tokenizer: DnaTokenizer, max_tokens: int | None) -> int | None:
    """Return the length up to which every window of A, C, G, T has at most so many tokens.

    Returns
    -------
    int or None
        None without a limit, and for tokens of varying length, of which no length is sure.
    """
    tokens = tokenizer.encode(PROBE)
    if max_tokens is None or tokens.start is None or tokens.end is None:
        return None
    real = tokens.real
    start, size = tokens.start[real], (tokens.end - tokens.start)[real]
    # Not the last tokens: what is too short for a whole one may be spelt by single letters.
    half = max(1, len(start) // 2)
    steps, sizes = np.unique(np.diff(start[: half + 1])), np.unique(size[:half])
    if len(steps) != 1 or len(sizes) != 1:
        return None
    room = max_tokens - int((~real).sum())
    step, letters = int(steps[0]), int(sizes[0])
    if step < letters:
        return (room - 1) * step + letters
    return (room - letters + 2) * letters - 1


def _name(network: nn.Module) -> str:
    return f"encoder huggingface: {type(network).__name__}"


def _unknown(tokenizer: LibraryTokenizer, tokens: Tokens) -> Problem:
    words = {
        len(word) for word in tokenizer.tokenizer.get_vocab() if word and set(word) <= set("ACGT")
    }
    fix = "describe a tokenizer of one token a base by the setting tokenizer"
    if words and tokenizer.kmer is None:
        fix = f"where it wants words with spaces between, set kmer (its words: {sorted(words)})"
    return Problem(
        "tokenizer-not-dna",
        "tokenizer",
        f"{tokenizer.count_unknown(tokens)} of {int(tokens.real.sum())} tokens of "
        f"{len(PROBE)} bases A, C, G, T are unknown to it",
        "a tokenizer that knows plain DNA in capital letters",
        fix,
    )


def count_vocabulary(network: nn.Module) -> int:
    """Return how many tokens a network knows.

    Raises
    ------
    InputError
        It reads no tokens.
    """
    library_network: Any = network
    table = getattr(library_network.get_input_embeddings(), "weight", None)
    if not isinstance(table, torch.Tensor) or table.ndim != 2:
        found, wanted = "it does not read tokens", "a language model"
        raise InputError(Problem("network-fails", _name(network), found, wanted))
    return len(table)


def find_dim(network: nn.Module, tokenizer: DnaTokenizer, max_bases: int | None) -> int:
    """Run a short window, and return the size of its hidden states.

    Raises
    ------
    InputError
        The network fails on it.
    """
    length = min(getattr(tokenizer, "kmer", None) or 0, len(PROBE)) + 16
    ids = tokenizer.encode(PROBE[: min(length, max_bases or length)]).ids
    vocabulary = count_vocabulary(network)
    if ids.max() >= vocabulary:
        found = f"it makes token {ids.max()} of DNA, and the network knows {vocabulary} tokens"
        wanted = "the tokenizer that the network was trained with"
        raise InputError(Problem("token-unknown-to-network", "tokenizer", found, wanted))
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            states: torch.Tensor = network(torch.from_numpy(ids)[None].to(device))
    except Exception as error:  # whatever a network that was not made for this does
        raise InputError(
            Problem(
                "network-fails",
                _name(network),
                f"it fails on {len(ids)} tokens of DNA: {first_line(error)}",
                "a network that gives a vector a token, and a hidden_layer that it has",
            )
        ) from error
    if states.shape[:2] != (1, len(ids)):
        found = f"hidden states of shape {list(states.shape)} for {len(ids)} tokens"
        wanted = "one vector a token"
        raise InputError(Problem("network-fails", _name(network), found, wanted))
    return int(states.shape[2])
