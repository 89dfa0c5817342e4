"""SwiFT's configuration: upstream's constructor arguments, and what a pipeline must know.

Names are those of upstream's ``SwinTransformer4D`` (Transconnectome/SwiFT); the defaults are the
published size, as upstream's sample scripts have it. (Its constructor has no such defaults, and
its command line others.) An argument that nothing here knows is an error, because it could change
the result.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from encoders.errors import InputError, Problem
from encoders.swift.windows import Axes

NORMALISATIONS = ("swift_znorm", "swift_minmax")
Wrong = tuple[str, str, str]


@dataclass(frozen=True)
class SwiFTConfig:
    """How large the network is, how its windows lie, and what it takes.

    Parameters
    ----------
    img_size : tuple of int
        Voxels along x, y, z and frames; one number stands for four.
    in_chans : int
        Channels of the volumes.
    embed_dim : int
        Width of the first stage.
    window_size, first_window_size : tuple of int
        Windows along H, W, D and time: of all stages but the first, and of the first.
    patch_size : tuple of int
        Voxels of a token along x, y, z, and 1: frames are never joined.
    depths, num_heads : tuple of int
        Blocks and attention heads of each stage.
    mlp_ratio : float
        Inner width of the feed-forward networks over their width.
    qkv_bias : bool
    drop_rate, attn_drop_rate, drop_path_rate : float
        Dropout, dropout of attention and, growing from 0 over the blocks, drop path; in training
        only.
    patch_norm : bool
        Upstream fails where it is true.
    use_checkpoint : bool
        Gradient checkpointing from the start, see `encoders.recompute`.
    c_multiplier : int
        By how much each merging of patches widens the network.
    last_layer_full_MSA : bool
        Whether the last stage attends over all of space at once. The weights do not tell.
    to_float : bool
        Upstream's: whether half-precision volumes become float32 before anything else. Here they
        always take the type of the weights.
    spatial_dims, downsample, num_classes
        Upstream's, of a single value (4, ``"mergingv2"``) or without a part in the network.
    normalisation : {"swift_znorm", "swift_minmax"}
        Not upstream's: how the volumes were scaled in training.
    voxel_mm : float or None
        Not upstream's: isotropic voxel size in mm; None takes volumes as they are.
    tr_s : float or None
        Not upstream's: repetition time in seconds; None where it is not known.
    pretraining_cohorts : tuple of str or None
        Not upstream's: whose recordings the weights have seen; None where it is not known.
    """

    img_size: Axes = (96, 96, 96, 20)
    in_chans: int = 1
    embed_dim: int = 36
    window_size: Axes = (4, 4, 4, 4)
    first_window_size: Axes = (4, 4, 4, 4)
    patch_size: Axes = (6, 6, 6, 1)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    patch_norm: bool = False
    use_checkpoint: bool = False
    c_multiplier: int = 2
    last_layer_full_MSA: bool = True  # noqa: N815  # upstream's name
    to_float: bool = True
    spatial_dims: int = 4
    downsample: str = "mergingv2"
    num_classes: int = 2
    normalisation: str = "swift_znorm"
    voxel_mm: float | None = 2.0
    tr_s: float | None = None
    pretraining_cohorts: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """Build from upstream's constructor arguments and ours.

        Parameters
        ----------
        values : mapping
        where : str
            File or key named in errors.

        Raises
        ------
        InputError
            Unknown arguments, or values that fit no network; all at once.
        """
        kinds = {field.name: field for field in fields(cls)}
        problems = [
            Problem(
                "unknown-config-key",
                f"{where}: {name}",
                "an argument that this encoder does not know",
                f"one of {', '.join(sorted(kinds))}",
            )
            for name in values
            if name not in kinds
        ]
        given: dict[str, Any] = {}
        for name in sorted(set(values) & set(kinds)):
            kind = str(getattr(kinds[name].type, "__name__", kinds[name].type))
            given[name] = _as_tuple(name, values[name])
            wanted = _find_wrong_type(name, kind, given[name])
            if wanted:
                found = repr(values[name])
                problems.append(Problem("bad-config-type", f"{where}: {name}", found, wanted))
        if problems:
            raise InputError(problems)
        config = cls(**given)
        wrong = find_wrong_sizes(config) or find_wrong_fits(config)
        if wrong:
            raise InputError(
                Problem("bad-config-value", f"{where}: {name}", found, wanted)
                for name, found, wanted in wrong
            )
        return config

    def as_dict(self) -> dict[str, Any]:
        """Return all arguments as plain values, as JSON has them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @property
    def dims(self) -> list[int]:
        """Width of each stage."""
        return [self.embed_dim * self.c_multiplier**index for index in range(len(self.depths))]

    @property
    def feature_dim(self) -> int:
        """Width of the last stage."""
        return self.dims[-1]

    @property
    def grids(self) -> list[Axes]:
        """Tokens along H, W, D and time in each stage."""
        h, w, d, frames = (
            size // side for size, side in zip(self.img_size, self.patch_size, strict=True)
        )
        return [(h >> index, w >> index, d >> index, frames) for index in range(len(self.depths))]

    @property
    def drop_path_rates(self) -> list[list[float]]:
        """Drop-path rate of each block of each stage: evenly from 0 to ``drop_path_rate``."""
        steps = max(sum(self.depths) - 1, 1)
        rates = iter([self.drop_path_rate * index / steps for index in range(sum(self.depths))])
        return [[next(rates) for _ in range(depth)] for depth in self.depths]


def find_wrong_sizes(config: SwiFTConfig) -> list[Wrong]:
    """List numbers no network has: (argument, what it is, what it must be)."""
    sizes = ("img_size", "in_chans", "embed_dim", "window_size", "first_window_size", "patch_size")
    wrong: list[Wrong] = []
    for name in (*sizes, "depths", "num_heads", "c_multiplier"):
        value = getattr(config, name)
        if min(value if isinstance(value, tuple) else (value,), default=0) < 1:
            wrong.append((name, _words(value), "at least 1"))
    rates = {name: getattr(config, name) for name in ("drop_rate", "attn_drop_rate")}
    rates["drop_path_rate"] = config.drop_path_rate
    wrong += [
        (name, str(rate), "at least 0 and below 1")
        for name, rate in rates.items()
        if not 0 <= rate < 1
    ]
    for name in ("mlp_ratio", "voxel_mm", "tr_s"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            wrong.append((name, str(value), "a positive number"))
    if config.normalisation not in NORMALISATIONS:
        found = repr(config.normalisation)
        wrong.append(("normalisation", found, f"one of {', '.join(NORMALISATIONS)}"))
    if config.spatial_dims != 4:
        wrong.append(("spatial_dims", str(config.spatial_dims), "4: three of space, one of time"))
    if config.downsample != "mergingv2":
        wrong.append(("downsample", repr(config.downsample), "'mergingv2': upstream has no other"))
    if config.patch_norm:
        wrong.append(("patch_norm", "true", "false: upstream fails on true"))
    return wrong


def find_wrong_fits(config: SwiFTConfig) -> list[Wrong]:
    """List sizes that do not go together, where each alone would do."""
    wrong: list[Wrong] = []
    stages = len(config.depths)
    if config.patch_size[3] != 1:
        wrong.append(("patch_size", _words(config.patch_size), "1 frame: they are never joined"))
    if len(config.num_heads) != stages:
        wanted = f"one number for each of the {stages} stages of depths"
        return [*wrong, ("num_heads", _words(config.num_heads), wanted)]
    for dim, heads in zip(config.dims, config.num_heads, strict=True):
        if dim % heads:
            wanted = f"divisors of the stages' widths {_words(config.dims)}"
            wrong.append(("num_heads", _words(config.num_heads), wanted))
            break
    merged = 2 ** (stages - 1)
    unit = [merged * side for side in config.patch_size[:3]]
    if any(size % side for size, side in zip(config.img_size, unit, strict=False)):
        wanted = f"multiples of {_words(unit)} voxels: a patch, halved {stages - 1} times"
        wrong.append(("img_size", _words(config.img_size), wanted))
    return wrong


def _words(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _as_tuple(name: str, value: Any) -> Any:
    if name == "img_size" and isinstance(value, int) and not isinstance(value, bool):
        return (value,) * 4
    return tuple(value) if isinstance(value, list) else value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, tuple[Callable[[object], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_int, "a whole number"),
    "float": (_is_number, "a number"),
    "float | None": (lambda value: value is None or _is_number(value), "a number or null"),
    "str": (lambda value: isinstance(value, str), "text"),
}


def _find_wrong_type(name: str, kind: str, value: object) -> str:
    """Say what is wanted where a value is of another kind; empty where it is right."""
    if kind in _TYPES:
        fits, words = _TYPES[kind]
        return "" if fits(value) else words
    if name == "pretraining_cohorts":
        names = value is None or (
            isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        )
        return "" if names else "a list of names, or null"
    numbers = isinstance(value, tuple) and all(map(_is_int, value))
    if name in ("depths", "num_heads"):
        return "" if numbers else "a list of whole numbers"
    fits_axes = numbers and isinstance(value, tuple) and len(value) == 4
    return "" if fits_axes else "four whole numbers: three of space, one of time"
