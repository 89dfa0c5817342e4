"""Networks filled from upstream's checkpoints, or with fresh weights.

Parameters carry upstream's names, so nothing is renamed. Two groups of stored tensors are set
aside by name: the decoder, where only the encoder half is wanted, and ``decoder.decoder_pred`` of
the first family, which upstream inherits from the ViT-MAE, saves, and never uses.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from encoders.atomic import replace_file, write_json
from encoders.brainlm.config import BrainLMConfig, NystromformerConfig
from encoders.brainlm.initialise import initialise
from encoders.errors import InputError, Problem
from encoders.weights import Weights, load_strict, read_weights, tensors_sha256

UNUSED_NYSTROMFORMER = ("decoder.decoder_pred.weight", "decoder.decoder_pred.bias")

Config = TypeVar("Config", bound=BrainLMConfig)
Network = TypeVar("Network", bound=nn.Module)


def read_checkpoint(
    weights: str | PathLike[str] | None,
    config: Mapping[str, Any] | None,
    revision: str | None,
    published: Config,
) -> tuple[Weights | None, Config]:
    """Read weights, and the configuration they come with or are given.

    Parameters
    ----------
    weights : path or hub id, optional
        None for fresh weights.
    config : mapping, optional
        Upstream's arguments; they go before those in the file, or the published model's.
    revision : str, optional
        Revision of a hub id.
    published : BrainLMConfig
        The published model's, for fresh weights.

    Raises
    ------
    InputError
        Weights that cannot be read; no configuration; unknown or impossible arguments.
    """
    kind = type(published)
    if weights is None:
        return None, kind.from_dict(_fresh_arguments(published, config or {}))
    stored = read_weights(weights, revision=revision)
    if stored.config is None and config is None:
        raise InputError(
            Problem(
                "config-missing",
                stored.id,
                "weights without config.json",
                "upstream's arguments: the number of heads, for one, is not in the weights",
                "name the folder that holds both, or give config",
            )
        )
    where = f"{stored.id}/config.json" if stored.config is not None else "config"
    return stored, kind.from_dict({**(stored.config or {}), **(config or {})}, where)


def _fresh_arguments(published: BrainLMConfig, config: Mapping[str, Any]) -> dict[str, Any]:
    values = {**published.as_dict(), **config}
    if isinstance(published, NystromformerConfig):
        # Its decoder must be as wide as the encoder: one width given stands for both.
        for name in ("hidden_size", "num_attention_heads"):
            values[f"decoder_{name}"] = config.get(f"decoder_{name}", values[name])
    return values


def build(network: Callable[[Config], Network], config: Config) -> Network:
    """Build a network to be filled, leaving torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        return network(config)


@dataclass(frozen=True)
class WeightSource:
    """Where a network's numbers come from.

    Parameters
    ----------
    id : str
        File, folder or hub id, or ``"random(seed=N)"``.
    sha256 : str
        `encoders.weights.tensors_sha256` of all stored tensors, or of the fresh ones in float32.
    fresh : bool
        Whether they are random.
    """

    id: str
    sha256: str
    fresh: bool


def fill(
    module: nn.Module, stored: Weights | None, unused: Collection[str], seed: int, dtype: str
) -> WeightSource:
    """Fill a built network from stored weights, or from `seed`, and turn it to `dtype`.

    Parameters
    ----------
    unused : collection of str
        Stored tensors that are known and not wanted.

    Raises
    ------
    InputError
        As `encoders.weights.load_strict`.
    """
    target = getattr(torch, dtype)
    if stored is None:
        initialise(module, seed)
        source = WeightSource(f"random(seed={seed})", tensors_sha256(module.state_dict()), True)
        module.to(target)
        return source
    module.to(target)
    load_strict(module, stored.tensors, source=stored.id, ignore=unused)
    return WeightSource(stored.id, stored.sha256, False)


def save_network(network: nn.Module, config: BrainLMConfig, folder: str | PathLike[str]) -> Path:
    """Write a network under upstream's names, so that it loads like a published one.

    Parameters
    ----------
    network : nn.Module
        An autoencoder (`encoders.brainlm.autoencoder`), or a backbone alone.
    config : BrainLMConfig
        The network's own.
    folder : path
        Is made where it is missing; ``model.safetensors`` and ``config.json`` in it are replaced,
        each whole or not at all.

    Returns
    -------
    Path
        The folder. Of the first family the two ``decoder.decoder_pred`` tensors are left out:
        upstream's library makes them anew and never uses them.
    """
    where = Path(folder)
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    # The metadata that upstream's library writes, without which its reader refuses the file.
    replace_file(
        where / "model.safetensors",
        lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}),
    )
    write_json(where / "config.json", {**config.as_dict(), "model_type": config.model_type})
    return where


def list_unused(config: Config, decoder: Callable[[Config], nn.Module]) -> tuple[str, ...]:
    """List the stored tensors that the encoder half has no use for."""
    with torch.device("meta"):
        names = decoder(config).state_dict()
    never = UNUSED_NYSTROMFORMER if isinstance(config, NystromformerConfig) else ()
    return (*(f"decoder.{name}" for name in names), *never)
