"""Settings that are this encoder's own, beside the constructor arguments of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from encoders.errors import InputError, Problem

POOLINGS = ("bases", "tokens")


@dataclass(frozen=True)
class Options:
    """How a network of the transformers library is made a DNA encoder.

    Parameters
    ----------
    hidden_layer : int or None
        Which hidden state: 0 is the embeddings, 1 the first layer's, negative numbers count from
        the end; None for the network's last hidden state, final normalisation included.
    pooling : {"bases", "tokens"} or None
        "bases": every base has the vector of its token (the mean of its tokens, where they
        overlap), and features are means over bases. "tokens": features are means over tokens, and
        bases cannot be weighted. None for bases where the tokenizer tells which bases a token
        covers, tokens otherwise.
    padding : bool
        Whether windows of different length run together, padded on the right and masked; right
        only for networks that obey the attention mask. By default windows of equal length run
        together, and nothing is padded.
    kmer : int or None
        The tokenizer wants words of `kmer` bases with spaces between, as DNABERT's does; None
        where it takes plain sequences.
    kmer_stride : int
        Bases from one word's start to the next's; the last word ends with the window.
    max_length_bp : int or None
        Longest window, where it is to be shorter than the network's own limit.
    tokenizer : mapping or None
        A tokenizer of one token a base, for networks without one that can be used; see
        `encoders.huggingface.characters.CharacterTokenizer.from_mapping`.
    tokenizer_sha256 : str or None
        Digest of the tokenizer's files, which must then be theirs. An encoder's spec has it, so
        that features of another tokenizer are not taken for its own.
    """

    hidden_layer: int | None = None
    pooling: str | None = None
    padding: bool = False
    kmer: int | None = None
    kmer_stride: int = 1
    max_length_bp: int | None = None
    tokenizer: Mapping[str, Any] | None = None
    tokenizer_sha256: str | None = None

    def as_given(self) -> dict[str, Any]:
        """Return the settings that are not the default, as plain values."""
        plain = asdict(self)
        return {f.name: plain[f.name] for f in fields(self) if plain[f.name] != f.default}


def split_options(values: Mapping[str, Any]) -> tuple[dict[str, Any], Options]:
    """Part a configuration into the network's arguments and ours.

    Raises
    ------
    InputError
        Every setting of ours that has a wrong value.
    """
    names = {field.name for field in fields(Options)}
    ours = {name: value for name, value in values.items() if name in names}
    problems = [
        Problem("config-value", f"config: {name}", repr(value), _WANTED[name])
        for name, value in ours.items()
        if not _fits(name, value)
    ]
    if "kmer_stride" in ours and ours.get("kmer") is None:
        found, wanted = "kmer_stride without kmer", "both, or neither"
        problems.append(Problem("config-value", "config: kmer_stride", found, wanted))
    elif not problems and ours.get("kmer_stride", 1) > (ours.get("kmer") or 1):
        wanted = "at most kmer: between words, bases would be in none"
        found = str(ours["kmer_stride"])
        problems.append(Problem("config-value", "config: kmer_stride", found, wanted))
    if problems:
        raise InputError(problems)
    rest = {name: value for name, value in values.items() if name not in names}
    return rest, Options(**ours)


_WANTED = {
    "hidden_layer": "a whole number, or null for the last hidden state",
    "pooling": "bases, tokens, or null to find out",
    "padding": "true or false",
    "kmer": "a whole number of bases above 0, or null for plain sequences",
    "kmer_stride": "a whole number of bases above 0",
    "max_length_bp": "a whole number of bases above 0, or null",
    "tokenizer": "a mapping with the key letters, or null",
    "tokenizer_sha256": "64 hexadecimal digits, or null",
}


def _fits(name: str, value: Any) -> bool:
    if name == "padding":
        return isinstance(value, bool)
    if name == "pooling":
        return value is None or value in POOLINGS
    if name == "tokenizer":
        return value is None or isinstance(value, Mapping)
    if name == "tokenizer_sha256":
        return value is None or isinstance(value, str)
    if value is None:
        return name != "kmer_stride"
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and (value > 0 or name == "hidden_layer")
