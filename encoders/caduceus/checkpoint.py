"""Upstream's Caduceus checkpoints: key names, ties, and their two prefixes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from encoders.caduceus.config import CaduceusConfig
from encoders.caduceus.model import CaduceusForMaskedLM
from encoders.errors import InputError, Problem
from encoders.weights import Weights, load_strict

_WORDS = "caduceus.backbone.embeddings.word_embeddings"


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
    tensors = _full_names(weights.tensors)
    tied_head = config.rcps or config.tie_word_embeddings
    stored_head = any(name.startswith("lm_head.") for name in tensors)
    model = CaduceusForMaskedLM(config, head=tied_head or stored_head)
    model.set_dtype(dtype)
    load_strict(model, tensors, source=weights.id, ties=find_ties(config))
    _check_complement_map(config, tensors, weights.id)
    return model


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


def _full_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
