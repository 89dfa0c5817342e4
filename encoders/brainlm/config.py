"""Configurations of both BrainLM families, read from upstream's ``config.json``.

Names and defaults are upstream's constructor arguments (``BrainLMConfig`` and ``ViTMAEConfig``).
An argument that nothing here knows is an error, because it could change the result.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self

from encoders.bookkeeping import is_bookkeeping
from encoders.brainlm.layers import ACTIVATIONS
from encoders.errors import InputError, Problem

Pooling = Literal["cls", "mean"]
TrainMode = Literal["auto_encode", "predict_last", "predict_last_pixel"]

TRAIN_MODES = ("auto_encode", "predict_last", "predict_last_pixel")
# Upstream pads to these sizes and refuses every other patch.
PADDED_SIZE = {16: 432, 14: 434}


@dataclass(frozen=True)
class BrainLMConfig:
    """What both families share; see the two subclasses.

    Parameters
    ----------
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size : int
        Width, depth, heads and inner width of the encoder.
    decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads : int
    decoder_intermediate_size : int
        The same of the decoder.
    hidden_act : str
        Activation of the inner layers, one of `encoders.brainlm.layers.ACTIVATIONS`.
    hidden_dropout_prob, attention_probs_dropout_prob : float
        Dropout in training; never active in evaluation mode.
    initializer_range : float
        Upstream's scale of fresh weights; fresh weights here do not use it (see `initialise`).
    layer_norm_eps : float
    mask_ratio : float
        Share of tokens masked in pretraining. Features are taken with nothing masked.
    norm_pix_loss : bool
        Whether the loss compares rows normalised over time (the padded ViT-MAE only).
    num_channels : int
        Channels of the image (the padded ViT-MAE only).
    pooling : {"cls", "mean"}
        Not upstream's: which feature stands for a segment, the CLS token (upstream's own choice
        for its downstream tasks) or the mean over the tokens of the recording.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    num_channels: int = 3
    qkv_bias: bool = True
    decoder_num_attention_heads: int = 16
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    pooling: Pooling = "cls"

    model_type: ClassVar[str]
    encoder_name: ClassVar[str]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """Build from upstream's arguments, as ``config.json`` holds them.

        Parameters
        ----------
        values : mapping
            Upstream's constructor arguments and ours; the transformers library's own
            bookkeeping is passed over.
        where : str
            File or key named in errors.

        Raises
        ------
        InputError
            Unknown arguments, another family's file, or values that fit no network; all at once.
        """
        known = {field.name for field in fields(cls)}
        problems = [
            Problem(
                "unknown-config-key",
                f"{where}: {name}",
                "an argument that this encoder does not know",
                f"one of {', '.join(sorted(known))}",
            )
            for name in values
            if name not in known | {"tie_word_embeddings"} and not is_bookkeeping(name)
        ]
        found = values.get("model_type", cls.model_type)
        if found != cls.model_type:
            problems.append(_other_family(cls, found, where))
        problems += _wrong_types(cls, values, where)
        if problems:
            raise InputError(problems)
        config = cls(**{name: value for name, value in values.items() if name in known})
        wrong = [
            Problem("bad-config-value", f"{where}: {name}", found, wanted)
            for name, found, wanted in config._find_wrong()
        ]
        if wrong:
            raise InputError(wrong)
        return config

    def as_dict(self) -> dict[str, Any]:
        """Return all arguments as plain values."""
        return asdict(self)

    def _find_wrong(self) -> list[tuple[str, str, str]]:
        """List (argument, what it is, what it must be)."""
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads")
        ones = ("num_channels", *sizes, *(f"decoder_{size}" for size in sizes))
        wrong = _below(self, ones, 1)
        wrong += _below(self, ("num_hidden_layers", "decoder_num_hidden_layers"), 0)
        if wrong:
            return wrong
        for prefix in ("", "decoder_"):
            size = getattr(self, f"{prefix}hidden_size")
            heads = getattr(self, f"{prefix}num_attention_heads")
            if size % heads:
                wanted = f"a multiple of {prefix}num_attention_heads ({heads})"
                wrong.append((f"{prefix}hidden_size", str(size), wanted))
        if self.hidden_act not in ACTIVATIONS:
            wrong.append(("hidden_act", repr(self.hidden_act), f"one of {', '.join(ACTIVATIONS)}"))
        if self.pooling not in ("cls", "mean"):
            wrong.append(("pooling", repr(self.pooling), "cls or mean"))
        shares = ("mask_ratio", "hidden_dropout_prob", "attention_probs_dropout_prob")
        wrong += [
            (name, str(getattr(self, name)), "at least 0 and below 1")
            for name in shares
            if not 0 <= getattr(self, name) < 1
        ]
        if not 0 < self.layer_norm_eps < math.inf:
            wrong.append(("layer_norm_eps", str(self.layer_norm_eps), "a positive number"))
        return wrong


@dataclass(frozen=True)
class NystromformerConfig(BrainLMConfig):
    """The first family: one token a parcel and stretch of time, Nystromformer layers.

    Parameters
    ----------
    num_brain_voxels : int
        Parcels P.
    num_timepoints_per_voxel : int
        Frames T of a segment.
    timepoint_patching_size : int
        Frames of a token; divides T.
    num_landmarks, segment_means_seq_len : int
        Equal in every published model, which means plain attention over all tokens. Where they
        differ, attention goes over `num_landmarks` segment means, and `segment_means_seq_len`
        must be the number of tokens with the CLS token.
    conv_kernel_size : int or None
        Length, in tokens, of the convolution over the values; odd. None leaves it out.
    inv_coeff_init_option : bool
        Upstream fails where it is true.
    use_tanh_decoder : bool
    loss_fn : {"mse", "mae"}
    image_size, patch_size, num_channels, qkv_bias, norm_pix_loss
        Written by upstream and never used.
    """

    hidden_size: int = 256
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    attention_probs_dropout_prob: float = 0.1
    decoder_num_attention_heads: int = 8
    decoder_hidden_size: int = 256
    decoder_num_hidden_layers: int = 4
    decoder_intermediate_size: int = 1024
    mask_ratio: float = 0.5
    num_brain_voxels: int = 424
    num_timepoints_per_voxel: int = 490
    timepoint_patching_size: int = 49
    use_tanh_decoder: bool = False
    loss_fn: str = "mse"
    segment_means_seq_len: int = 64
    num_landmarks: int = 64
    conv_kernel_size: int | None = 65
    inv_coeff_init_option: bool = False
    image_size: Any = 224
    patch_size: Any = 16

    model_type: ClassVar[str] = "brainlm_mae"
    encoder_name: ClassVar[str] = "brainlm_nystromformer"

    @property
    def exact_attention(self) -> bool:
        """Whether attention is plain softmax attention rather than the Nystrom approximation."""
        return self.num_landmarks == self.segment_means_seq_len

    def _find_wrong(self) -> list[tuple[str, str, str]]:
        wrong = super()._find_wrong()
        patch, frames = self.timepoint_patching_size, self.num_timepoints_per_voxel
        ones = ("num_brain_voxels", "num_timepoints_per_voxel", "timepoint_patching_size")
        wrong += _below(self, ones, 1)
        if patch >= 1 and frames % patch:
            wanted = f"a divisor of num_timepoints_per_voxel ({frames})"
            wrong.append(("timepoint_patching_size", str(patch), wanted))
        if self.hidden_size % 2:
            wrong.append(("hidden_size", str(self.hidden_size), "even, for the sine/cosine code"))
        if self.decoder_hidden_size != self.hidden_size:
            wanted = f"hidden_size ({self.hidden_size}): upstream's decoder adds codes of that size"
            wrong.append(("decoder_hidden_size", str(self.decoder_hidden_size), wanted))
        kernel = self.conv_kernel_size
        if kernel is not None and (kernel < 1 or kernel % 2 == 0):
            wrong.append(("conv_kernel_size", str(kernel), "odd, or null for no convolution"))
        if self.num_landmarks < 1 or self.segment_means_seq_len % max(self.num_landmarks, 1):
            wanted = f"a divisor of segment_means_seq_len ({self.segment_means_seq_len})"
            wrong.append(("num_landmarks", str(self.num_landmarks), wanted))
        if self.inv_coeff_init_option:
            wrong.append(("inv_coeff_init_option", "true", "false: upstream fails on true"))
        if self.loss_fn not in ("mse", "mae"):
            wrong.append(("loss_fn", repr(self.loss_fn), "mse or mae"))
        return wrong


@dataclass(frozen=True)
class ViTMAEConfig(BrainLMConfig):
    """The second family (111M, 650M): a padded image of parcels by frames, ViT-MAE layers.

    Parameters
    ----------
    image_size : int or pair of int, optional
        Size after padding: 432 for patch 16, 434 for patch 14, and nothing else.
    patch_size : {16, 14}
        Side of a patch, in parcels and in frames.
    train_mode : {"auto_encode", "predict_last", "predict_last_pixel"}
        How pretraining chose the tokens to mask.
    parcels, frames : int or None
        Not upstream's: the recording before padding, 424 by 200 in pretraining. None takes any
        even number up to the padded size (frames: a whole run is one segment).
    """

    image_size: Any = None
    patch_size: int = 16
    train_mode: TrainMode = "auto_encode"
    parcels: int | None = 424
    frames: int | None = 200

    model_type: ClassVar[str] = "vit_mae"
    encoder_name: ClassVar[str] = "brainlm_vitmae"

    @property
    def padded_size(self) -> int:
        """Side of the padded image."""
        return PADDED_SIZE[self.patch_size]

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.padded_size // self.patch_size

    def _find_wrong(self) -> list[tuple[str, str, str]]:
        wrong = super()._find_wrong()
        if self.train_mode not in TRAIN_MODES:
            wrong.append(("train_mode", repr(self.train_mode), f"one of {', '.join(TRAIN_MODES)}"))
        if self.patch_size not in PADDED_SIZE:
            wanted = "16 or 14: upstream knows no other padding"
            return [*wrong, ("patch_size", repr(self.patch_size), wanted)]
        size = self.padded_size
        if self.image_size not in (None, size, [size, size], (size, size)):
            wanted = f"{size}, the padded size for patch {self.patch_size}"
            wrong.append(("image_size", repr(self.image_size), wanted))
        for name in ("hidden_size", "decoder_hidden_size"):
            if getattr(self, name) % 4:
                wanted = "a multiple of 4, for the 2D sine/cosine code"
                wrong.append((name, str(getattr(self, name)), wanted))
        for name in ("parcels", "frames"):
            value = getattr(self, name)
            if value is not None and not (0 < value <= size and (size - value) % 2 == 0):
                wanted = f"even and at most {size}, so that the padding is equal on both sides"
                wrong.append((name, str(value), wanted))
        return wrong


def _below(config: BrainLMConfig, names: Iterable[str], least: int) -> list[tuple[str, str, str]]:
    values = {name: getattr(config, name) for name in names}
    return [(n, str(value), f"at least {least}") for n, value in values.items() if value < least]


def _other_family(cls: type[BrainLMConfig], found: object, where: str) -> Problem:
    names = {kind.model_type: kind.encoder_name for kind in (NystromformerConfig, ViTMAEConfig)}
    return Problem(
        "other-model",
        f"{where}: model_type",
        repr(found),
        repr(cls.model_type),
        f"load it as {names[str(found)]}" if str(found) in names else "",
    )


_CHECKS: dict[str, Callable[[object], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
}
_IN_WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}


def _wrong_types(cls: type[BrainLMConfig], values: Mapping[str, Any], where: str) -> list[Problem]:
    problems = []
    for field in fields(cls):
        name, _, optional = getattr(field.type, "__name__", str(field.type)).partition(" | ")
        if field.name not in values or name not in _CHECKS:
            continue
        value = values[field.name]
        if not (_CHECKS[name](value) or (optional and value is None)):
            wanted = _IN_WORDS[name] + (" or null" if optional else "")
            problems.append(
                Problem("bad-config-type", f"{where}: {field.name}", repr(value), wanted)
            )
    return problems


# Sizes of the published models, from the shapes and counts of their stored tensors: 13,429,292
# numbers without the position codes (old_13M), 112,590,080 (vitmae_111M) and 658,337,868
# (vitmae_650M).
PUBLISHED_NYSTROMFORMER = NystromformerConfig(
    hidden_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=1024,
    decoder_hidden_size=512,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=4,
    decoder_intermediate_size=1024,
    num_timepoints_per_voxel=200,
    timepoint_patching_size=20,
    mask_ratio=0.2,
)
PUBLISHED_VITMAE = ViTMAEConfig()
PUBLISHED_VITMAE_650M = ViTMAEConfig(
    hidden_size=1280,
    num_hidden_layers=32,
    num_attention_heads=16,
    intermediate_size=5120,
    patch_size=14,
)
