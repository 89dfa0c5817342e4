"""Networks of the transformers library, built from arguments or filled from a checkpoint."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from encoders.bookkeeping import is_bookkeeping
from encoders.errors import InputError, Problem
from encoders.huggingface.library import import_transformers
from encoders.torch_files import first_line
from encoders.weights import Weights, tensors_sha256

# Modules beside the way from tokens to the last hidden state; checkpoints of language models lack
# some of them, and the library would fill them with random numbers.
_BESIDE = ("pooler", "contact_head")
_ATTENTION = ("eager", "sdpa")
# Keys of config.json that say how to load or run a network, which is decided here: some of them
# would fetch compiled kernels.
_NOT_ARGUMENTS = frozenset(
    (
        *("model_type", "auto_map", "attn_implementation", "experts_implementation"),
        *("dtype", "torch_dtype", "torchscript", "transformers_version", "transformers_weights"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_cache"),
    )
)


def make_config(values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Make the library's configuration object.

    Parameters
    ----------
    values : mapping
        Arguments of the network, with ``model_type``; those of a file may hold more than the
        network knows.
    given : mapping
        The part that the user wrote; each key must be known.

    Returns
    -------
    transformers.PreTrainedConfig

    Raises
    ------
    InputError
        No ``model_type``, or one that the library does not ship; keys that it does not know;
        networks that read no single sequence of tokens; values that it refuses.
    """
    library = import_transformers()
    kind = values.get("model_type")
    if not isinstance(kind, str):
        wanted = "model_type, as config.json names it: bert, esm, gpt_neox, llama, mamba, ..."
        raise InputError(Problem("config-missing", "config: model_type", repr(kind), wanted))
    if kind not in library.CONFIG_MAPPING:
        raise InputError(
            Problem(
                "model-type",
                "config: model_type",
                f"'{kind}'",
                f"a network that transformers {library.__version__} ships itself",
                "a newer transformers may have it; else bring it as an encoder of your own",
            )
        )
    kept = {key: value for key, value in values.items() if _is_argument(key)}
    try:
        with _quiet():
            config = library.AutoConfig.for_model(kind, **kept)
    except Exception as error:  # the library's checks raise errors of many kinds
        raise InputError(_refused("config", error)) from error
    _check_keys(config, given)
    _check_kind(config, library)
    config.return_dict = True
    config.use_cache = False
    return config


def plain_config(config: Any) -> dict[str, Any]:
    """Return the arguments of a network that are not its kind's default, as plain values."""
    known = _known_keys(config)
    values = config.to_diff_dict()
    kept = {key: values[key] for key in values if key in known and _is_argument(key)}
    return {"model_type": config.model_type, **kept}


def _is_argument(key: str) -> bool:
    return not key.startswith("_") and key not in _NOT_ARGUMENTS


def _known_keys(config: Any) -> set[str]:
    kind = type(config)
    fields = {*inspect.signature(kind.__init__).parameters, *kind.attribute_map}
    return fields | set(getattr(kind, "__dataclass_fields__", ()))


def _check_keys(config: Any, given: Mapping[str, Any]) -> None:
    known = _known_keys(config)
    problems = [
        Problem(
            "config-unknown",
            f"config: {key}",
            f"no argument of {type(config).__name__}",
            "arguments of this network, or settings of the huggingface encoder",
        )
        for key in given
        if key not in known and not is_bookkeeping(key) and key != "attn_implementation"
    ]
    attention = given.get("attn_implementation")
    if attention not in (None, *_ATTENTION):
        wanted = " or ".join(_ATTENTION)
        problems.append(
            Problem("config-value", "config: attn_implementation", repr(attention), wanted)
        )
    if problems:
        raise InputError(problems)


def _check_kind(config: Any, library: Any) -> None:
    kind = config.model_type
    if type(config) not in library.MODEL_MAPPING:
        found, wanted = f"'{kind}' has no plain network", "a network with a last hidden state"
        raise InputError(Problem("model-type", "config: model_type", found, wanted))
    if getattr(config, "is_encoder_decoder", False):
        found = f"'{kind}' is an encoder with a decoder"
        raise InputError(Problem("model-type", "config: model_type", found, "one of either alone"))
    if getattr(config, "attention_type", None) == "block_sparse":
        raise InputError(
            Problem(
                "attention-type",
                "config: attention_type",
                "block_sparse, which the library leaves for good at the first short window, so "
                "that features would depend on the order of the windows",
                "original_full",
                "set config.attention_type=original_full",
            )
        )
    if getattr(config, "quantization_config", None):
        found, wanted = "weights of reduced precision", "plain floating-point weights"
        raise InputError(Problem("weights-quantised", "config: quantization_config", found, wanted))


def build_random(
    config: Any, attention: str | None, dtype: torch.dtype, seed: int
) -> tuple[nn.Module, str]:
    """Build a network with the library's own random initialisation, from `seed`.

    Numbers are drawn in float32, so that they are the same in every type.

    Returns
    -------
    network : transformers.PreTrainedModel
    sha256 : str
        `encoders.weights.tensors_sha256` of the numbers drawn.

    Raises
    ------
    InputError
        Sizes that do not go together.
    """
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _new(config, attention, torch.float32)
        drawn = network.state_dict()
        if dtype != torch.float32:
            network = _new(config, attention, dtype)
            network.load_state_dict(drawn)
    return network, tensors_sha256(drawn)


def return_layer(network: nn.Module, layer: int | None) -> None:
    """Make a network's forward return one hidden state [B, T, D], as a tensor.

    Parameters
    ----------
    network : transformers.PreTrainedModel
    layer : int or None
        See `encoders.huggingface.options.Options`.
    """
    settings: Any = network.config
    settings.output_hidden_states = layer is not None

    def choose(_module: nn.Module, _inputs: object, output: Any) -> torch.Tensor:
        chosen = output.last_hidden_state if layer is None else output.hidden_states[layer]
        assert isinstance(chosen, torch.Tensor)
        return chosen

    network.register_forward_hook(choose)


def load_stored(
    config: Any, attention: str | None, weights: Weights, dtype: torch.dtype
) -> nn.Module:
    """Fill a network from a checkpoint, completely and without leftovers.

    A head that ``architectures`` names is filled with it, and then left out.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
    attention : {"eager", "sdpa"} or None
        None for the library's choice.
    weights : Weights
        Of the plain network, or of one with a head; names as any version of the library wrote
        them, which it translates.
    dtype : torch.dtype

    Raises
    ------
    InputError
        Every tensor that is missing, left over, misshapen or not finite.
    """
    problems = _not_finite(weights)
    with _quiet():
        try:
            whole, told = _stored_class(config).from_pretrained(
                None,
                config=config,
                state_dict=dict(weights.tensors),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **_attention(attention),
            )
        except Exception as error:  # from shapes that cannot be translated to keys that clash
            raise InputError([*problems, _refused(weights.id, error)]) from error
    problems += _misfits(whole, told, weights)
    if problems:
        raise InputError(problems)
    network: nn.Module = whole.base_model
    _drop_beside(network)
    return network


def _stored_class(config: Any) -> Any:
    """Return the class that the weights were saved from, as far as the configuration says."""
    library = import_transformers()
    for architecture in getattr(config, "architectures", None) or ():
        kind = getattr(library, str(architecture), None)
        if getattr(kind, "config_class", None) is type(config):
            return kind
    kind = library.MODEL_MAPPING[type(config)]
    # Where a configuration stands for several networks, the library's own choice is the first.
    return kind[0] if isinstance(kind, (list, tuple)) else kind


def _new(config: Any, attention: str | None, dtype: torch.dtype) -> nn.Module:
    library = import_transformers()
    try:
        network = library.AutoModel.from_config(config, dtype=dtype, **_attention(attention))
    except Exception as error:  # sizes that do not go together fail anywhere in the network
        raise InputError(_refused("config", error)) from error
    _drop_beside(network)
    return network


def _attention(name: str | None) -> dict[str, str]:
    return {} if name is None else {"attn_implementation": name}


def _drop_beside(network: nn.Module) -> None:
    for name in _BESIDE:
        if isinstance(getattr(network, name, None), nn.Module):
            setattr(network, name, None)


def _misfits(whole: Any, told: Mapping[str, Any], weights: Weights) -> list[Problem]:
    inner = "" if whole.base_model is whole else f"{whole.base_model_prefix}."

    def matters(name: str) -> bool:
        return name.startswith(inner) and name.removeprefix(inner).split(".")[0] not in _BESIDE

    # What older files hold and newer networks work out for themselves, such as positions.
    derived = {name for name, _ in whole.named_buffers()}
    absent = {*told["missing_keys"], *_silently_missing(whole, weights)}
    problems = [
        Problem("tensor-missing", weights.id, f"no tensor {name}", "every tensor of the network")
        for name in sorted(absent)
        if matters(name)
    ]
    problems += [
        Problem("tensor-shape", weights.id, f"{name} has shape {list(found)}", f"{list(wanted)}")
        for name, found, wanted in sorted(told["mismatched_keys"])
        if matters(name)
    ]
    problems += [
        Problem(
            "tensor-unexpected",
            weights.id,
            f"tensor {name}",
            f"no such name in {type(whole).__name__}",
            "if it is a head's, name its class in the configuration: architectures",
        )
        for name in sorted(told["unexpected_keys"])
        if name not in derived and not any(part in _BESIDE for part in name.split(".")[:2])
    ]
    errors = [*(told.get("error_msgs") or ()), *dict(told.get("conversion_errors") or {}).values()]
    return problems + [_refused(weights.id, error) for error in errors]


def _silently_missing(whole: Any, weights: Weights) -> Iterator[str]:
    """Give the names that a network's class lets be missing without a word."""
    patterns = getattr(whole, "_keys_to_ignore_on_load_missing", None) or ()
    inner = f"{whole.base_model_prefix}."
    for name in whole.state_dict():
        if any(re.search(pattern, name) for pattern in patterns) and not (
            {name, inner + name, name.removeprefix(inner)} & set(weights.tensors)
        ):
            yield name


def _not_finite(weights: Weights) -> list[Problem]:
    return [
        Problem(
            "tensor-not-finite",
            weights.id,
            f"{name} has {int((~tensor.isfinite()).sum())} values that are NaN or infinite",
            "finite numbers",
        )
        for name, tensor in weights.tensors.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]


def _refused(where: str, error: object) -> Problem:
    reason = first_line(error) if isinstance(error, Exception) else str(error)
    return Problem(
        "model-refused",
        where,
        f"transformers cannot make this network: {reason}",
        "arguments and weights that fit this network",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's reports and progress bars from the terminal: ours say the same."""
    logging = import_transformers().utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
