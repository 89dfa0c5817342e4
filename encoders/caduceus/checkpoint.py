"""Upstream's Caduceus checkpoints: key names, ties, their two prefixes, and the way back."""

from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders.atomic import replace_file, write_json
from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.model import CaduceusForMaskedLM, CaduceusNetwork
from encoders.errors import InputError, Problem
from encoders.weights import Weights, load_strict

# What kuleshov-group/caduceus-{ps,ph}_seqlen-131k_d_model-256_n_layer-16 are built with.
PUBLISHED_CONFIG: Mapping[str, Any] = {
    "d_model": 256,
    "n_layer": 16,
    "vocab_size": 12,
    "rcps": True,
    "residual_in_fp32": False,
}
_WORDS = "caduceus.backbone.embeddings.word_embeddings"


def config_values(
    stored: Weights | None, config: Mapping[str, Any] | None
) -> tuple[dict[str, Any], str]:
    """Return upstream's arguments that a network is to be built with, and where they come from.

    Parameters
    ----------
    stored : Weights or None
        What the network will be filled with; None for random weights.
    config : mapping, optional
        Goes over the ``config.json`` beside the weights, or over the published architecture.

    Raises
    ------
    InputError
        There is neither.
    """
    if stored is None:
        return {**PUBLISHED_CONFIG, **(config or {})}, "config"
    if stored.config is None and config is None:
        raise InputError(
            Problem(
                "config-missing",
                stored.id,
                "weights without a configuration",
                "a folder with config.json, or the argument config",
            )
        )
    return {**(stored.config or {}), **(config or {})}, f"{stored.id}: config"


def load_network(
    config: CaduceusConfig, weights: Weights, dtype: torch.dtype = torch.float32
) -> CaduceusForMaskedLM:
    """Build the network and fill it completely; it has a head if the weights do.

    Parameters
    ----------
    config : CaduceusConfig
    weights : Weights
        Of upstream's masked-language model, or of its bare network (names begin with
        ``backbone.``); tied tensors stored once or twice.
    dtype : torch.dtype
        Arithmetic of the network; stored numbers are rounded to it once.

    Raises
    ------
    InputError
        Tensors are missing, left over, misshapen or not finite; ties that do not hold; a
        complement map that is not the configuration's.
    """
    tensors = full_names(weights.tensors)
    tied_head = config.rcps or config.tie_word_embeddings
    stored_head = any(name.startswith("lm_head.") for name in tensors)
    model = CaduceusForMaskedLM(config, head=tied_head or stored_head)
    fill_network(model, tensors, weights.id, dtype)
    return model


def fill_network(
    network: CaduceusNetwork,
    tensors: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype,
    unused: Collection[str] = (),
) -> None:
    """Fill a built network completely, in the arithmetic wanted; raises as `load_network`.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Under the network's own names (`full_names`).
    source : str
        Name of the checkpoint for error messages.
    unused : collection of str
        Stored tensors that are known and not wanted.
    """
    ties = {n: origin for n, origin in find_ties(network.config).items() if n not in unused}
    # Libraries differ in which of the names of a tied tensor they store.
    others = {origin: tensors[name] for name, origin in ties.items() if name in tensors}
    network.set_dtype(dtype)
    load_strict(network, {**others, **tensors}, source=source, ties=ties, ignore=unused)
    _check_complement_map(network.config, tensors, source)


def save_network(network: CaduceusNetwork, folder: str | PathLike[str]) -> Path:
    """Write a network as upstream's published files hold it: tied tensors once.

    What `load_network` read comes back bit for bit, in the same layout: ``model.safetensors``
    without the language-model head where it is the embedding matrix, and without the reverse
    direction's outer projections where they are the forward direction's.

    Parameters
    ----------
    network : CaduceusForMaskedLM or CaduceusForSequenceClassification
        On any device, in any type.
    folder : path
        Is made where it is missing; ``model.safetensors`` and ``config.json`` in it are replaced,
        each whole or not at all.

    Returns
    -------
    Path
        The folder.
    """
    where = Path(folder)
    tensors = stored_tensors(network)
    # The metadata that upstream's library writes, without which its reader refuses the file.
    replace_file(
        where / "model.safetensors",
        lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}),
    )
    described = {
        "architectures": [type(network).__name__],
        "model_type": "caduceus",
        "torch_dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
    }
    write_json(where / "config.json", network.config.as_upstream() | described)
    return where


def stored_tensors(network: CaduceusNetwork) -> dict[str, Tensor]:
    """Return the tensors that upstream stores of a network: all, but tied parameters once."""
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    # Buffers (the complement map) are stored under each of their names.
    left_out = parameters & find_ties(network.config).keys()
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if name not in left_out
    }


def find_ties(config: CaduceusConfig) -> dict[str, str]:
    """Return the names of tensors that are the same as another, with that one's name.

    Upstream's published files hold only the latter; a file that holds both must agree.
    """
    ties = {}
    if config.bidirectional and config.bidirectional_weight_tie:
        mixer = "mixer.submodule" if config.rcps else "mixer"
        kinds = ("weight", "bias") if config.ssm.bias else ("weight",)
        ties = {
            f"caduceus.backbone.layers.{layer}.{mixer}.mamba_rev.{projection}.{kind}": (
                f"caduceus.backbone.layers.{layer}.{mixer}.mamba_fwd.{projection}.{kind}"
            )
            for layer in range(config.n_layer)
            for projection in ("in_proj", "out_proj")
            for kind in kinds
        }
    if config.rcps:
        ties["lm_head.lm_head.weight"] = f"{_WORDS}.embedding.weight"
        ties["lm_head.complement_map"] = f"{_WORDS}.complement_map"
    elif config.tie_word_embeddings:
        ties["lm_head.weight"] = f"{_WORDS}.weight"
    return ties


def full_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors as the masked-language model does.

    Training checkpoints put ``model.`` before every name, the bare network leaves ``caduceus.``
    out.
    """
    named = dict(tensors)
    if named and all(name.startswith("model.") for name in named):
        named = {name.removeprefix("model."): tensor for name, tensor in named.items()}
    if all(name.startswith("backbone.") for name in named):
        named = {f"caduceus.{name}": tensor for name, tensor in named.items()}
    return named


def _check_complement_map(
    config: CaduceusConfig, tensors: Mapping[str, Tensor], source: str
) -> None:
    """Refuse a file whose complement map is another: its strands would not be complements."""
    stored = tensors.get(f"{_WORDS}.complement_map")
    if stored is not None and not torch.equal(stored, torch.tensor(config.complement_map)):
        raise InputError(
            Problem(
                "complement-map",
                f"{source}: {_WORDS}.complement_map",
                f"{stored.tolist()}",
                f"the configuration's, {list(config.complement_map)}",
                "take the config.json that came with these weights",
            )
        )
