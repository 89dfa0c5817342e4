"""Upstream's BrainMT checkpoints: where they keep what, and what their tensors alone can say.

``train.py`` saves a ``.pth`` file of six entries, of which two matter here: ``model_state_dict``,
and ``config``, all of its configuration with the constructor's arguments under ``model``. It says
neither the stem's widths nor the number of tokens, which the release fixes in its source, nor which
Mamba was installed: those are read off the tensors.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from encoders.brainmt.config import BrainMTConfig
from encoders.brainmt.initialise import make_network
from encoders.brainmt.model import BrainMT
from encoders.errors import InputError, Problem
from encoders.mamba import cast_mamba
from encoders.weights import Weights, load_strict, tensors_sha256

_DDP_PREFIX = "module."
_BACKWARD = ".mixer.A_b_log"


def read_config(stored: Weights | None, config: Mapping[str, Any] | None) -> BrainMTConfig:
    """Put together the configuration of stored weights, or of fresh ones.

    Parameters
    ----------
    stored : Weights or None
        None for fresh weights.
    config : mapping, optional
        Arguments that go before those in the file.

    Raises
    ------
    InputError
        No configuration; unknown or impossible arguments.
    """
    if stored is None:
        return BrainMTConfig.from_mapping(config or {})
    arguments = _stored_arguments(stored)
    if arguments is None and config is None:
        raise InputError(
            Problem(
                "config-missing",
                stored.id,
                "weights without BrainMT's configuration",
                "upstream's arguments: the number of heads, for one, is not in the weights",
                "give config (an empty one for the published architecture), or a .pth file as "
                "upstream's train.py saves it",
            )
        )
    source = "config" if arguments is None else f"{stored.id}: config"
    values = {**_read_off(stored.tensors), **(arguments or {}), **(config or {})}
    return BrainMTConfig.from_mapping(values, source=source)


def load_network(
    config: BrainMTConfig, stored: Weights | None, seed: int, dtype: torch.dtype
) -> tuple[BrainMT, str, str]:
    """Build the network and fill it completely, from stored weights or from `seed`.

    Returns
    -------
    network : BrainMT
    weights_id, weights_sha256 : str
        As `encoders.base.EncoderSpec` has them; the digest of fresh weights is that of float32.

    Raises
    ------
    InputError
        As `encoders.weights.load_strict`.
    """
    network = make_network(config, seed)
    if stored is None:
        digest = tensors_sha256(network.state_dict())
        cast_mamba(network, dtype)
        return network, f"random(seed={seed})", digest
    cast_mamba(network, dtype)
    load_strict(network, _bare_names(stored.tensors), source=stored.id)
    return network, stored.id, stored.sha256


def _stored_arguments(stored: Weights) -> dict[str, Any] | None:
    """Find upstream's arguments inside a ``.pth`` file, or in a ``config.json`` of BrainMT's."""
    inside = stored.extra.get("config")
    if isinstance(inside, Mapping) and isinstance(inside.get("model"), Mapping):
        data = inside.get("dataset")
        dataset = data.get("ds_name") if isinstance(data, Mapping) else None
        return {**inside["model"], "dataset": dataset}
    beside = stored.config or {}
    for values in (beside, beside.get("constructor"), beside.get("model")):
        if isinstance(values, Mapping) and "embed_dim" in values:
            return dict(values)
    return None


def _bare_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what torch's distributed wrapper puts before all names, if it was saved with it."""
    if all(name.startswith(_DDP_PREFIX) for name in tensors):
        return {name.removeprefix(_DDP_PREFIX): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _read_off(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read what no configuration of upstream's says; a tensor that is missing is told of later."""
    named = _bare_names(tensors)
    axes = {
        "stem_in_dim": ("patch_embed.conv_down.0.weight", 5, 0, 0),
        "stem_dim": ("patch_embed.conv_down.2.weight", 5, 0, 0),
        "num_patches": ("pos_embed", 3, 1, -1),
    }
    found: dict[str, Any] = {
        argument: named[name].shape[axis] + more
        for argument, (name, dimensions, axis, more) in axes.items()
        if name in named and named[name].ndim == dimensions
    }
    return {**found, "bidirectional": any(name.endswith(_BACKWARD) for name in named)}
