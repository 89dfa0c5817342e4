"""SwiFT filled from upstream's checkpoints, or with fresh weights.

Upstream saves Lightning checkpoints: under ``state_dict`` the backbone as ``model.*`` and a head
as ``output_head.*``, under ``hyper_parameters`` its whole command line. Safetensors files with the
same names, or with those of the backbone alone, are read too. Files from before 2024-08 hold
``model.head.weight`` and ``model.head.bias``, a layer that took no part in any output; they alone
are dropped.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor

from encoders.errors import InputError, Problem
from encoders.swift.config import SwiFTConfig
from encoders.weights import Weights, read_weights

BACKBONE_PREFIX = "model."
HEAD_PREFIX = "output_head."
RETIRED_TENSORS = ("model.head.weight", "model.head.bias")
# Most of these cannot be read off the weights, and upstream's command line, its scripts and its
# constructor each have other defaults: none is ever guessed.
REQUIRED = (
    *("img_size", "in_chans", "embed_dim", "window_size", "first_window_size", "patch_size"),
    *("depths", "num_heads", "last_layer_full_MSA"),
)
# Cohort and repetition time (seconds) by upstream's names of datasets.
_DATASETS = {"S1200": ("HCP", 0.72), "UKB": ("UK Biobank", 0.735), "ABCD": ("ABCD", 0.8)}
# Where a config.json can hold the arguments, if not at its top.
_NESTED = ("hyper_parameters", "constructor")


def read_checkpoint(
    weights: str | PathLike[str] | Weights | None,
    config: Mapping[str, Any] | None,
    revision: str | None,
) -> tuple[Weights | None, SwiFTConfig]:
    """Read weights, and the configuration they come with or are given.

    Parameters
    ----------
    weights : path or hub id, optional
        None for fresh weights.
    config : mapping, optional
        Upstream's constructor arguments and ours; they go before those in the file, or the
        published size.
    revision : str, optional
        Revision of a hub id.

    Raises
    ------
    InputError
        Weights that cannot be read; arguments that are missing, unknown or impossible.
    """
    if weights is None:
        return None, SwiFTConfig.from_dict(config or {})
    stored = read_weights(weights, revision=revision)
    arguments = {**_stored_arguments(stored), **(config or {})}
    missing = [name for name in REQUIRED if name not in arguments]
    if missing:
        raise InputError(
            Problem(
                "config-missing",
                stored.id,
                f"weights without {', '.join(missing)}",
                "upstream's constructor arguments: the weights do not tell how windows lie",
                "give them as config, or load the whole Lightning checkpoint, which holds them",
            )
        )
    return stored, SwiFTConfig.from_dict(arguments, f"{stored.id}: config")


def read_hyper_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn upstream's command line into constructor arguments, as its ``load_model`` does.

    Parameters
    ----------
    values : mapping
        ``hyper_parameters`` of a checkpoint: network, training and data options, some hundred.
    """
    found = {name: values[name] for name in (*REQUIRED, "c_multiplier") if name in values}
    if "attn_drop_rate" in values:
        for name in ("drop_rate", "drop_path_rate", "attn_drop_rate"):
            found[name] = values["attn_drop_rate"]
    if "precision" in values:
        found["to_float"] = not str(values["precision"]).startswith(("16", "bf16"))
    if values.get("dataset_name") in _DATASETS:
        cohort, found["tr_s"] = _DATASETS[values["dataset_name"]]
        # Fine-tuned weights have seen the recordings of those they started from, too.
        if not values.get("load_model_path") and not values.get("resume_ckpt_path"):
            found["pretraining_cohorts"] = [cohort]
    return found


def _stored_arguments(stored: Weights) -> dict[str, Any]:
    """Collect the arguments beside the weights: in a Lightning checkpoint, or in config.json."""
    found: dict[str, Any] = {}
    hyper_parameters = stored.extra.get("hyper_parameters")
    if isinstance(hyper_parameters, Mapping):
        found |= read_hyper_parameters(hyper_parameters)
    beside = stored.config or {}
    nested = [beside[name] for name in _NESTED if isinstance(beside.get(name), Mapping)]
    if not nested:
        return found | beside
    return found | (
        read_hyper_parameters(nested[0]) if "hyper_parameters" in beside else dict(nested[0])
    )


def split_tensors(stored: Weights) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Tell a checkpoint's backbone from its head.

    Returns
    -------
    backbone, head : dict of str to Tensor
        Under the names in the file; what is neither stays with the backbone, to be refused there.
        Retired tensors are left out.
    prefix : str
        What stands before the backbone's own names: ``"model."`` or nothing.
    """
    names = stored.tensors
    prefix = BACKBONE_PREFIX if any(name.startswith(BACKBONE_PREFIX) for name in names) else ""
    head = {name: tensor for name, tensor in names.items() if name.startswith(HEAD_PREFIX)}
    backbone = {
        name: tensor
        for name, tensor in names.items()
        if name not in head and name not in RETIRED_TENSORS
    }
    return backbone, head, prefix
