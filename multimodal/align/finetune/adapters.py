"""Which parameters of an encoder learn: all that reach its features, or LoRA's adapters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from encoders.errors import InputError, Problem
from multimodal.align.finetune.options import EncoderTuning


@dataclass(frozen=True)
class Reach:
    """What of a network makes its features.

    Parameters
    ----------
    parameters : list of str
        Names of parameters that gradients of the features reach.
    linear : list of str
        Names of linear layers that are called; of others only the weights are taken.
    called : frozenset of str
        Names of all modules that are called.
    """

    parameters: list[str]
    linear: list[str]
    called: frozenset[str] = frozenset()


def find_reach(network: nn.Module, first: Callable[[], Tensor]) -> Reach:
    """Run a network forth and back once, and see what takes part.

    Heads and decoders that checkpoints bring do not, and neither can an adapter whose layer is
    never called.

    Parameters
    ----------
    network : nn.Module
        Left as it was.
    first : callable
        Encodes something by it.
    """
    named = dict(network.named_parameters())
    before = {name: parameter.requires_grad for name, parameter in named.items()}
    totals: list[Tensor] = []
    try:
        network.requires_grad_(True)
        with torch.enable_grad():
            called = modules_called(network, lambda: totals.append(first().sum()))
        if not totals[0].requires_grad:
            return Reach([], [])
        # Nothing is left in the parameters' own gradients.
        found = torch.autograd.grad(totals[0], list(named.values()), allow_unused=True)
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(before[name])
    reached = [name for name, one in zip(named, found, strict=True) if one is not None]
    names = [name for name, module in network.named_modules() if module in called]
    # A network that is a single layer has no place where another could stand instead.
    linear = [name for name in names if name and isinstance(network.get_submodule(name), nn.Linear)]
    return Reach(reached, linear, frozenset(names))


def modules_called(network: nn.Module, work: Callable[[], object]) -> set[nn.Module]:
    """Return the modules of a network that are called while some work is done."""
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_hook(lambda layer, *_: called.add(layer))
        for module in network.modules()
    ]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()
    return called


def train_all(network: nn.Module, reach: Reach) -> dict[str, nn.Parameter]:
    """Let all learn that makes features, and nothing else; return it by name."""
    network.requires_grad_(False)
    named = dict(network.named_parameters())
    trained = {name: named[name] for name in reach.parameters}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def train_adapters(
    network: nn.Module, reach: Reach, tuning: EncoderTuning, seed: int, where: str
) -> dict[str, nn.Parameter]:
    """Put LoRA's adapters into a network and let only them learn; return them by name.

    Features are what they were: the change of each layer begins at zero.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    reach : Reach
    tuning : EncoderTuning
    seed : int
        Of the adapters' random half.
    where : str
        The setting, for errors.

    Raises
    ------
    InputError
        peft is not installed, or a target names no linear layer that is called.
    """
    refuse_without_peft(where)
    names = _targets(network, reach, tuning.targets, f"{where}.targets")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=tuning.rank, lora_alpha=tuning.alpha, target_modules=names, lora_dropout=0.0, bias="none"
    )
    with torch.random.fork_rng(devices=[]), _same_everywhere(network, names):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def refuse_without_peft(where: str) -> None:
    """Raise `InputError` where peft, which makes LoRA's adapters, is not installed."""
    if find_spec("peft") is None:
        found = "lora, but the package peft is not installed"
        fix = f"pip install peft, or set {where}.method=full"
        raise InputError(Problem("package-missing", f"{where}.method", found, "peft", fix))


def _targets(network: nn.Module, reach: Reach, ends: Sequence[str], where: str) -> list[str]:
    """Full names of the linear layers that `ends` mean."""
    if not reach.linear:
        found = f"{type(network).__name__} calls no linear layer"
        fix = where.replace(".targets", ".method=full")
        raise InputError(Problem("lora-targets", where, found, "linear layers", f"set {fix}"))
    if not ends:
        return reach.linear
    known = sorted({name.rpartition(".")[2] for name in reach.linear})
    problems = [
        Problem(
            "lora-targets", where, f"'{end}' names no linear layer that is called",
            f"ends of names such as {', '.join(known)}",
        )
        for end in ends
        if not any(_ends_with(name, end) for name in reach.linear)
    ]  # fmt: skip
    if problems:
        raise InputError(problems)
    return [name for name in reach.linear if any(_ends_with(name, end) for end in ends)]


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


@contextmanager
def _same_everywhere(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Put what replaces a layer within the block wherever the layer stood, under other names too.

    Networks share layers between directions; peft replaces them at one of their places.
    """
    places = list(network.named_modules(remove_duplicate=False))
    replaced = {network.get_submodule(name): name for name in names}
    yield
    for place, layer in places:
        if layer in replaced and network.get_submodule(place) is layer:
            parent, _, own_name = place.rpartition(".")
            setattr(network.get_submodule(parent), own_name, network.get_submodule(replaced[layer]))
