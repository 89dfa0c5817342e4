"""BrainMT's configuration: upstream's constructor arguments, read strictly, and a few of ours."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch

from encoders.errors import InputError, Problem
from encoders.mamba import InitializerConfig, SsmConfig

# Upstream takes these and does nothing with them; `name` is in its configuration files alone.
_WITHOUT_EFFECT = frozenset(("name", "patch_size", "bimamba", "checkpoint_num", "device", "dtype"))
_STRIDE = 16
NORMALISATIONS = ("brainmt_znorm", "brainmt_minmax", "brainmt_none")
POOLINGS = ("cls", "mean")


def token_grid(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens along each axis of a volume.

    Four convolutions of stride 2, each from n voxels to n / 2 rounded up.

    Parameters
    ----------
    shape : sequence of int
        Voxels along each axis.
    """
    return tuple(-(-size // _STRIDE) for size in shape)


@dataclass(frozen=True)
class BrainMTConfig:
    """Architecture of a BrainMT network; defaults are upstream's, its published size.

    Parameters
    ----------
    img_size : tuple of int
        Voxels along x, y, z. Upstream stores it and never reads it; here it is the size of the
        volumes that `EncoderSpec` asks for.
    in_chans : int
        Channels of a frame.
    num_classes : int
        Outputs of the head; 0 for none.
    embed_dim : int
        Width of tokens; four times `stem_dim`.
    depth : tuple of int
        Mamba layers, attention blocks.
    rms_norm, norm_epsilon
        RMSNorm or LayerNorm in the Mamba layers. The other norms are layer norms of epsilon 1e-5.
    residual_in_fp32, fused_add_norm : bool
        How the residual is rounded; matters in reduced precision only.
    num_heads : int
        Attention heads.
    qkv_bias : bool
    num_frames : int
        Frames of a segment. A network of one frame has one time embedding for any number.
    drop_rate, drop_path_rate, attn_drop_rate, fc_drop_rate : float
        Dropout in training: of tokens, projections and MLP; of whole branches (the last one's
        rate); of attention weights; before the head.
    ssm_cfg, initializer_cfg
        Upstream's options of the Mamba blocks and of their first weights.
    use_checkpoint : bool
        Recompute activations in the backward pass instead of keeping them. Upstream takes the
        argument and does not act on it.
    bidirectional : bool
        Ours: whether Mamba reads both ways, as the paper says, with the weights that the fork of
        VideoMamba would train. The released code reads one way, whatever its `bimamba` says.
    stem_in_dim, stem_dim, num_patches : int
        Ours, fixed numbers in the release: widths of the stem's two convolutions, and tokens of a
        frame.
    pooling : {"cls", "mean"}
        Ours: which feature stands for a segment, the CLS token (upstream's) or the tokens' mean.
    normalisation : str
        Ours: what was done to the volumes the network was trained on, one of `NORMALISATIONS`;
        upstream's script ships with the first, and its checkpoints do not say.
    voxel_mm : float, optional
        Ours: size of the voxels; None for any. Upstream's volumes, those of the default `img_size`,
        have 2 mm.
    dataset : str, optional
        Ours: upstream's name of the data behind trained weights, ``"ukb"`` or ``"hcp"`` (its
        ``ds_name``).
    """

    img_size: tuple[int, int, int] = (91, 109, 91)
    in_chans: int = 1
    num_classes: int = 1
    embed_dim: int = 512
    depth: tuple[int, int] = (12, 8)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    num_heads: int = 2
    qkv_bias: bool = True
    num_frames: int = 200
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    attn_drop_rate: float = 0.0
    fc_drop_rate: float = 0.0
    ssm_cfg: SsmConfig = field(default_factory=SsmConfig)
    norm_epsilon: float = 1e-5
    initializer_cfg: InitializerConfig = field(default_factory=InitializerConfig)
    use_checkpoint: bool = False
    bidirectional: bool = False
    stem_in_dim: int = 64
    stem_dim: int = 128
    num_patches: int = 252
    pooling: Literal["cls", "mean"] = "cls"
    normalisation: str = NORMALISATIONS[0]
    voxel_mm: float | None = 2.0
    dataset: str | None = None

    @property
    def drop_path_rates(self) -> list[float]:
        """Rates of stochastic depth, rising evenly over Mamba layers and attention blocks."""
        # In float32, as upstream has them, whatever the device a network is built on.
        steps = torch.linspace(0, self.drop_path_rate, sum(self.depth), device="cpu")
        rates: list[float] = steps.tolist()
        return rates

    @property
    def fits_img_size(self) -> bool:
        """Whether volumes of `img_size` give the number of tokens that there are embeddings for."""
        return math.prod(token_grid(self.img_size)) == self.num_patches

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "config") -> "BrainMTConfig":
        """Read upstream's constructor arguments and ours.

        Parameters
        ----------
        values : mapping
            What is not given has upstream's default; the stem's widths an eighth and a quarter of
            `embed_dim`, `num_patches` what volumes of `img_size` give, and `voxel_mm` none for
            another `img_size` than upstream's.
        source : str
            Name of the file, for error messages.

        Raises
        ------
        InputError
            Lists all arguments that are unknown or have values this network cannot have.
        """
        given = {name: value for name, value in values.items() if name not in _WITHOUT_EFFECT}
        nested = {name: given.pop(name) or {} for name in _NESTED if name in given}
        problems = list(_find_problems(cls, given, _CHECKS, source))
        for name, options in nested.items():
            if isinstance(options, Mapping):
                where = f"{source}: {name}"
                problems += _find_problems(_NESTED[name], options, _NESTED_CHECKS, where)
            else:
                problems.append(_wrong(f"{source}: {name}", options, "a mapping, or null"))
        if problems:
            raise InputError(problems)
        given |= {name: _NESTED[name](**options) for name, options in nested.items()}
        given |= {name: tuple(given[name]) for name in ("img_size", "depth") if name in given}
        config = cls(**_with_widths(given))
        problems = list(config._find_misfits(source))
        if problems:
            raise InputError(problems)
        return config

    def as_dict(self) -> dict[str, Any]:
        """Return all arguments as plain values."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def _find_misfits(self, source: str) -> Iterator[Problem]:
        if self.embed_dim != 4 * self.stem_dim:
            wanted = f"four times stem_dim ({self.stem_dim}): the stem doubles its width twice"
            yield _wrong(f"{source}: embed_dim", self.embed_dim, wanted)
        if self.embed_dim % self.num_heads:
            wanted = f"a multiple of num_heads ({self.num_heads})"
            yield _wrong(f"{source}: embed_dim", self.embed_dim, wanted)


def _with_widths(given: dict[str, Any]) -> dict[str, Any]:
    """Fill in the numbers that follow from others where they are not given."""
    width = given.get("embed_dim", BrainMTConfig.embed_dim)
    shape = given.get("img_size", BrainMTConfig.img_size)
    follow = {
        "stem_in_dim": max(width // 8, 1),
        "stem_dim": max(width // 4, 1),
        "num_patches": math.prod(token_grid(shape)),
        "voxel_mm": BrainMTConfig.voxel_mm if shape == BrainMTConfig.img_size else None,
    }
    return {**follow, **given}


_Check = tuple[Callable[[Any], bool], str]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole_numbers(count: int, least: int) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and len(value) == count and all(_is_whole(v) and v >= least for v in value)

    return check


def _one_of(*names: str) -> _Check:
    return lambda value: value in names, f"one of {', '.join(names)}"


_SIZE: _Check = (lambda value: _is_whole(value) and value > 0, "a positive whole number")
_COUNT: _Check = (lambda value: _is_whole(value) and value >= 0, "a whole number, at least 0")
_SWITCH: _Check = (lambda value: isinstance(value, bool), "true or false")
_RATE: _Check = (lambda value: _is_number(value) and 0 <= value < 1, "at least 0 and below 1")
_POSITIVE: _Check = (lambda value: _is_number(value) and value > 0, "a positive number")

_CHECKS: dict[str, _Check] = {
    "img_size": (_whole_numbers(3, 1), "three positive whole numbers: voxels along x, y, z"),
    "depth": (_whole_numbers(2, 0), "two whole numbers: Mamba layers, attention blocks"),
    "num_classes": _COUNT,
    "norm_epsilon": _POSITIVE,
    "pooling": _one_of(*POOLINGS),
    "normalisation": _one_of(*NORMALISATIONS),
    "voxel_mm": (lambda value: value is None or _POSITIVE[0](value), "a positive number, or null"),
    "dataset": (lambda value: value is None or isinstance(value, str), "a name, or null"),
    **dict.fromkeys(("in_chans", "embed_dim", "num_heads", "num_frames"), _SIZE),
    **dict.fromkeys(("stem_in_dim", "stem_dim", "num_patches"), _SIZE),
    **dict.fromkeys(("rms_norm", "residual_in_fp32", "fused_add_norm", "qkv_bias"), _SWITCH),
    **dict.fromkeys(("use_checkpoint", "bidirectional"), _SWITCH),
    **dict.fromkeys(("drop_rate", "drop_path_rate", "attn_drop_rate", "fc_drop_rate"), _RATE),
}
_NESTED: dict[str, type] = {"ssm_cfg": SsmConfig, "initializer_cfg": InitializerConfig}
_NESTED_CHECKS: dict[str, _Check] = {
    "dt_rank": (lambda value: value == "auto" or _SIZE[0](value), 'a positive number, or "auto"'),
    "dt_init": _one_of("random", "constant"),
    **dict.fromkeys(("d_state", "d_conv", "expand", "n_residuals_per_layer"), _SIZE),
    **dict.fromkeys(("dt_min", "dt_max", "dt_scale", "dt_init_floor"), _POSITIVE),
    **dict.fromkeys(("conv_bias", "bias", "use_fast_path", "rescale_prenorm_residual"), _SWITCH),
    "initializer_range": _POSITIVE,
}


def _wrong(where: str, value: object, wanted: str) -> Problem:
    return Problem("config-value", where, f"{value!r}", wanted)


def _find_problems(
    kind: type, values: Mapping[str, Any], checks: Mapping[str, _Check], source: str
) -> Iterator[Problem]:
    known = {f.name for f in fields(kind)}
    for name, value in values.items():
        where = f"{source}: {name}"
        if name not in known:
            wanted = f"one of {', '.join(sorted(known))}"
            yield Problem("config-unknown", where, f"{value!r}", wanted)
        elif name in checks and not checks[name][0](value):
            yield _wrong(where, value, checks[name][1])
