"""Networks that are split between processes: fully sharded data parallel, torch's ``fully_shard``.

Every process holds a share of each parameter, of its gradient, and of what the optimiser keeps of
it. A unit (a tower, a layer of an encoder) is put together from all processes where it computes,
and taken apart again. Everything here that says so is a collective: every process must call it, as
often as the others and in the same order.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from multimodal.align.gather import process_count

T = TypeVar("T")


@torch.no_grad()
def make_equal(module: nn.Module, device: torch.device) -> None:
    """Give all processes the numbers of the first, as distributed data parallel does; a collective.

    Machines of different kinds may have begun with others, in the last bits or by a sign.

    Parameters
    ----------
    module : nn.Module
        Not split yet.
    device : torch.device
        Over which processes exchange tensors.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        value = tensor.detach().to(device, copy=True).contiguous()
        dist.broadcast(value, src=0)
        tensor.copy_(value)


def shard_unit(unit: nn.Module, mesh: DeviceMesh) -> None:
    """Split a module's parameters that no unit below it has split already; a collective.

    Parameters
    ----------
    unit : nn.Module
        Changed in place, until `Shards.join`.
    mesh : DeviceMesh
        Of one dimension, all processes.
    """
    # A single number cannot be split; `average_whole_gradients` keeps it equal everywhere.
    numbers = {parameter for parameter in unit.parameters() if parameter.dim() == 0}
    # Whole again between two uses, its gradients would pass by the optimiser.
    fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=numbers)


def independent(units: Iterable[nn.Module], network: nn.Module) -> list[nn.Module]:
    """Return the units that share no parameter with anything else in a network."""
    owners: dict[nn.Parameter, set[nn.Module]] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    found = []
    for unit in units:
        own = set(unit.modules())
        if all(owners[parameter] <= own for parameter in unit.parameters()):
            found.append(unit)
    return found


class Shards:
    """Remembers what modules were before they are split, to put them together again.

    torch's ``fully_shard`` changes classes and hooks in place, and has no way back.

    Parameters
    ----------
    roots : iterable of nn.Module
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self._before = [
            (module, type(module), set(vars(module)), _hooks(module))
            for module in {each: None for root in roots for each in root.modules()}
        ]

    def join(self) -> None:
        """Put all parameters together, on the CPU, as plain modules; a collective."""
        joined: dict[nn.Parameter, nn.Parameter] = {}
        for module, kind, names, hooks in self._before:
            for name, parameter in module._parameters.items():
                if not isinstance(parameter, DTensor):
                    continue
                if parameter not in joined:
                    value = whole(parameter.detach()).cpu()
                    joined[parameter] = nn.Parameter(value, parameter.requires_grad)
                module._parameters[name] = joined[parameter]
            module.__class__ = kind
            for name in set(vars(module)) - names:
                del vars(module)[name]
            vars(module).update(hooks)


def _hooks(module: nn.Module) -> dict[str, Any]:
    return {name: value.copy() for name, value in vars(module).items() if name.endswith(_HOOKS)}


_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


def whole(value: T) -> T:
    """Return a split tensor put together (a collective), and anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value  # type: ignore[return-value]


def gathered(values: Mapping[str, T], keep: bool) -> dict[str, T]:
    """Put tensors together one by one, in main memory where they were split; a collective.

    Parameters
    ----------
    values : mapping of str to Tensor
    keep : bool
        Whether this process wants them; others only help.
    """
    found = {}
    for name, value in values.items():
        joined: Any = whole(value)
        if keep:
            found[name] = joined.cpu() if isinstance(value, DTensor) else joined
    return found


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's share of a tensor of which every process has the whole."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    on_device = value.to(like.device, copy=True)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def average_whole_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters that are not split over the processes; a collective."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(process_count())


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Shorten the gradient of all parameters together to a norm; a collective.

    As `torch.nn.utils.clip_grad_norm_`, which does not take split and whole ones together.

    Parameters
    ----------
    parameters : iterable of Parameter
    largest : float
        Euclidean norm.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    shares = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    wholes = [g for g in gradients if not isinstance(g, DTensor)]
    squares = _square(shares, gradients[0])
    dist.all_reduce(squares)
    norm = (squares + _square(wholes, gradients[0])).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*shares, *wholes):
        gradient.mul_(factor.to(gradient.device, gradient.dtype))


def _square(tensors: list[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros(
        (), device=like.device, dtype=torch.promote_types(like.dtype, torch.float32)
    )
    for tensor in tensors:
        total = total + tensor.to(total.dtype).square().sum()
    return total


class ShardedAdamW(torch.optim.AdamW):
    """AdamW whose groups may hold split and whole parameters; its state dict is as AdamW's."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; torch's kernels for lists of tensors want either kind alone."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        groups = self.param_groups
        try:
            for split in (True, False):
                self.param_groups = [
                    {**group, "params": [p for p in group["params"] if _is_split(p) == split]}
                    for group in groups
                ]
                super().step()
        finally:
            self.param_groups = groups
        return loss


def _is_split(parameter: Tensor) -> bool:
    return isinstance(parameter, DTensor)


def whole_optimizer_state(state: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """Put together what an optimiser's state dict holds, as of one process; a collective."""
    each = {number: gathered(values, keep) for number, values in state["state"].items()}
    return {**state, "state": each}


def split_optimizer_state(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Undo `whole_optimizer_state`, for an optimiser's own parameters."""
    ours = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    like = dict(zip(numbers, ours, strict=True))
    each = {
        number: {
            name: split_like(value, like[number]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": each}


class Turns:
    """Makes every process call a split encoder as often as the others.

    What a process encodes in a step differs in number, while each call of a split network is a
    collective. Before each call the processes agree that there is one; those that have nothing
    left to encode repeat their last, for nothing.

    Parameters
    ----------
    encoder : nn.Module
        Split already.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._encoder, self._filling = encoder, False
        self._last: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        # Before the hook that puts the encoder's own parameters together.
        encoder.register_forward_pre_hook(self._before_call, prepend=True, with_kwargs=True)

    def _before_call(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not self._filling:
            self._somebody_calls(True)
            self._last = (inputs, named)

    def fill(self, encoded: Tensor) -> Tensor:
        """Call the encoder for the others as long as they do; what was encoded stays as it is.

        Parameters
        ----------
        encoded : Tensor
            All that this process had to encode; its gradients now also pass through the calls made
            here, in which they are zero.
        """
        inputs, named = self._last
        self._filling = True
        try:
            while self._somebody_calls(False):
                encoded = encoded + self._encoder(*inputs, **named)[:0].sum().to(encoded)
        finally:
            self._filling = False
            self._last = ((), {})
        return encoded

    def _somebody_calls(self, own: bool) -> bool:
        device = next(self._encoder.parameters()).device
        flag = torch.tensor([int(own)], device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)


def put_together_without_gradients(encoder: nn.Module, units: Iterable[nn.Module]) -> None:
    """Put units together for a call without gradients, in which an encoder passes by their forward.

    Parameters
    ----------
    encoder : nn.Module
        Split, and the units below it.
    units : iterable of nn.Module
    """
    bypassed: list[Any] = list(units)

    def before(*_: Any) -> None:
        if not torch.is_grad_enabled():
            for unit in bypassed:
                unit.unshard()

    def after(*_: Any) -> None:
        if not torch.is_grad_enabled():
            for unit in bypassed:
                unit.reshard()

    encoder.register_forward_pre_hook(before)
    encoder.register_forward_hook(after)
