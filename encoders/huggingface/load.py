"""From a name or a folder to a `HuggingFaceEncoder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import nn

from encoders.base import EncoderSpec, WindowInput
from encoders.errors import InputError, Problem
from encoders.huggingface.characters import DEFAULT, CharacterTokenizer
from encoders.huggingface.encoder import NAME, HuggingFaceEncoder
from encoders.huggingface.files import ModelFiles, find_model, refuse_code
from encoders.huggingface.library import PAPER
from encoders.huggingface.network import (
    build_random,
    load_stored,
    make_config,
    plain_config,
    return_layer,
)
from encoders.huggingface.options import Options, split_options
from encoders.huggingface.probe import (
    find_dim,
    find_max_bases,
    find_max_tokens,
    find_pooling,
)
from encoders.huggingface.tokens import DnaTokenizer
from encoders.huggingface.words import LibraryTokenizer
from encoders.weights import Weights, read_weights

# Arguments that suit our tokenizer, for networks with random weights.
_RANDOM = {"vocab_size": 16, "pad_token_id": 0}


def load_huggingface(
    weights: str | PathLike[str] | Weights | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> HuggingFaceEncoder:
    """Load any DNA language model whose network the transformers library ships itself.

    Parameters
    ----------
    weights : str or path, optional
        A folder as ``save_pretrained`` writes it (network and tokenizer), a weights file, or a
        hub id ``owner/name``; None for random weights drawn from `seed`.
    config : mapping, optional
        Arguments of the network, which go over the ``config.json`` beside the weights, and the
        settings of `encoders.huggingface.options.Options`. Random weights want ``model_type``.
    revision, device, dtype, seed
        See `encoders.load_encoder`.

    Returns
    -------
    HuggingFaceEncoder

    Raises
    ------
    InputError
        transformers is not installed; the model or its tokenizer wants Python code of its own, is
        missing, incomplete or damaged, or does not know DNA; arguments that do not fit.
    """
    given, options = split_options(config or {})
    arithmetic = getattr(torch, dtype)
    if weights is None:
        made = _make_random(given, options, arithmetic, seed)
    else:
        source = weights if isinstance(weights, Weights) else find_model(weights, revision)
        made = _make_stored(source, given, options, arithmetic)
    return_layer(made.network, options.hidden_layer)
    made.network.to(device).eval()
    max_tokens = find_max_tokens(made.network, made.tokenizer)
    max_bases = find_max_bases(made.tokenizer, max_tokens)
    dim = find_dim(made.network, made.tokenizer, max_bases)
    limits = [limit for limit in (max_bases, options.max_length_bp) if limit is not None]
    spec = _make_spec(made, dim, min(limits, default=None))
    if "attn_implementation" in given:
        spec.config["attn_implementation"] = given["attn_implementation"]
    return HuggingFaceEncoder(made.network, made.tokenizer, made.options, spec, max_tokens).eval()


@dataclass(frozen=True)
class _Made:
    """A network with all that belongs to it."""

    network: nn.Module
    tokenizer: DnaTokenizer
    arguments: Any
    options: Options
    identity: str
    sha256: str
    licence: str


def _make_random(
    given: Mapping[str, Any], options: Options, dtype: torch.dtype, seed: int
) -> _Made:
    arguments = make_config({**_RANDOM, **given}, given)
    options = replace(options, tokenizer=options.tokenizer or DEFAULT)
    tokenizer = _make_tokenizer(None, options, arguments, {})
    options = replace(options, pooling=find_pooling(tokenizer, options))
    network, sha256 = build_random(arguments, given.get("attn_implementation"), dtype, seed)
    return _Made(network, tokenizer, arguments, options, f"random(seed={seed})", sha256, "none")


def _make_stored(
    source: ModelFiles | Weights, given: Mapping[str, Any], options: Options, dtype: torch.dtype
) -> _Made:
    files = source if isinstance(source, ModelFiles) else None
    name = source.name if isinstance(source, ModelFiles) else source.id
    values = {**(source.config or {}), **given}
    # All of this comes before the weights, which may be gigabytes to fetch.
    refuse_code(values, f"{name}: config.json", tokenizer=False)
    arguments = make_config(values, given)
    tokenizer = _make_tokenizer(files, options, arguments, values)
    if files is not None and options.tokenizer is None:
        options = _pin_tokenizer(files, options)
    options = replace(options, pooling=find_pooling(tokenizer, options))
    checkpoint = (
        read_weights(source.weights, revision=source.revision)
        if isinstance(source, ModelFiles)
        else source
    )
    network = load_stored(arguments, given.get("attn_implementation"), checkpoint, dtype)
    identity, sha256, licence = checkpoint.id, checkpoint.sha256, checkpoint.license or "unknown"
    return _Made(network, tokenizer, arguments, options, identity, sha256, licence)


def _make_tokenizer(
    files: ModelFiles | None, options: Options, arguments: Any, values: Mapping[str, Any]
) -> DnaTokenizer:
    if options.tokenizer is not None:
        return CharacterTokenizer.from_mapping(options.tokenizer)
    if files is None:
        wanted = "the setting tokenizer, or a folder with a tokenizer's files"
        raise InputError(Problem("tokenizer-missing", "config: tokenizer", "none", wanted))
    refuse_code(values, f"{files.name}: config.json", tokenizer=True)
    return LibraryTokenizer(files.load_tokenizer(arguments), options.kmer, options.kmer_stride)


def _pin_tokenizer(files: ModelFiles, options: Options) -> Options:
    found = files.tokenizer_sha256()
    if options.tokenizer_sha256 not in (None, found):
        place, wanted = "config: tokenizer_sha256", f"{options.tokenizer_sha256}, as configured"
        told = f"the tokenizer's files in {files.folder} have {found}"
        raise InputError(Problem("tokenizer-differs", place, told, wanted))
    return replace(options, tokenizer_sha256=found)


def _make_spec(made: _Made, dim: int, max_length_bp: int | None) -> EncoderSpec:
    random = made.identity.startswith("random(")
    return EncoderSpec(
        name=NAME,
        modality="dna",
        feature_dim=dim,
        input=WindowInput(max_length_bp),
        parameters=sum(p.numel() for p in made.network.parameters() if p.requires_grad),
        weights_id=made.identity,
        weights_sha256=made.sha256,
        code_license="Apache-2.0",
        weight_license=made.licence,
        pretraining_cohorts=() if random else ("not known: see the model card",),
        paper=PAPER,
        config={**plain_config(made.arguments), **made.options.as_given()},
    )
