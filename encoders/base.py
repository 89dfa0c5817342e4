"""The contract every encoder meets: what it takes (`EncoderSpec`) and what it gives (`Encoder`)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from encoders.recompute import set_gradient_checkpointing


@dataclass(frozen=True)
class WindowInput:
    """DNA windows, one token a base.

    Parameters
    ----------
    max_length_bp : int or None
        Longest haplotype window the encoder takes, in bases; None for no limit.
    alphabet : str
        Letters with a token of their own; everything else becomes the unknown token.
    """

    max_length_bp: int | None
    alphabet: str = "ACGTN"


@dataclass(frozen=True)
class ParcelInput:
    """Parcel time series ``[batch, parcels, frames]``.

    Parameters
    ----------
    parcels : int or None
        Number of atlas labels; None when any number will do.
    frames : int or None
        Frames a segment; None when a whole run is one segment.
    tr_s : float or None
        Repetition time the encoder was trained at, in seconds; None when any will do.
    space, atlas : str or None
        Standard space and atlas the parcels come from.
    order : {"atlas", "y"}
        Parcel order wanted: the atlas' own, or stably sorted by ascending Y coordinate (mm).
    needs_xyz : bool
        Whether ``forward`` is also given parcel coordinates ``[batch, parcels, 3]`` in mm.
    normalisation : str
        Name of the normalisation: "none", "zscore_parcel", "zscore_run", "subtract_mean_divide",
        "robust_parcel", or another of `multimodal.bold.normalise`.
    statistics : mapping of str to float
        Its constants, e.g. ``{"divide_by": 41.44047}``.
    """

    parcels: int | None
    frames: int | None
    tr_s: float | None = None
    space: str | None = None
    atlas: str | None = None
    order: Literal["atlas", "y"] = "atlas"
    needs_xyz: bool = False
    normalisation: str = "none"
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class VolumeInput:
    """Volume series ``[batch, 1, x, y, z, frames]``.

    Parameters
    ----------
    shape : tuple of int
        Voxels along x, y, z.
    frames : int
        Frames a segment.
    voxel_mm : float or None
        Isotropic voxel size in mm; None when any will do.
    tr_s : float or None
        Repetition time in seconds; None when any will do.
    space : str or None
        Standard space.
    normalisation : str
        Name of the normalisation.
    statistics : mapping of str to float
        Its constants.
    orientation : str
        Where the axes run to: ``"RAS"`` is right, anterior, superior, ``"LAS"`` the order in which
        FSL's templates are stored.
    """

    shape: tuple[int, int, int]
    frames: int
    voxel_mm: float | None = None
    tr_s: float | None = None
    space: str | None = None
    normalisation: str = "none"
    statistics: dict[str, float] = field(default_factory=dict)
    orientation: str = "RAS"


@dataclass(frozen=True)
class EncoderSpec:
    """What a pipeline must know to feed an encoder, and a reader to judge it.

    Parameters
    ----------
    name : str
        The name `load_encoder` takes.
    modality : {"dna", "brain"}
    feature_dim : int or None
        D, the size of one feature; None when it follows from the input (connectivity).
    input : WindowInput or ParcelInput or VolumeInput
    parameters : int
        Number of trainable numbers.
    weights_id : str
        File name, hub id, or ``"random(seed=N)"``.
    weights_sha256 : str
        Digest over names, shapes, dtypes and bytes of all tensors, so that two files with equal
        tensors give equal digests.
    code_license, weight_license : str
        SPDX identifiers; ``"none"`` where there are no weights.
    pretraining_cohorts : tuple of str
        Cohorts seen in pretraining: testing on one of them is not a held-out test.
    paper : str
        Citation with DOI or arXiv number.
    config : mapping
        Upstream's constructor arguments, as used.
    """

    name: str
    modality: Literal["dna", "brain"]
    feature_dim: int | None
    input: WindowInput | ParcelInput | VolumeInput
    parameters: int
    weights_id: str
    weights_sha256: str
    code_license: str
    weight_license: str
    pretraining_cohorts: tuple[str, ...] = ()
    paper: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON-ready values, the input's kind under ``input.kind``."""
        values = asdict(self)
        values["pretraining_cohorts"] = list(self.pretraining_cohorts)
        values["input"]["kind"] = type(self.input).__name__
        if isinstance(self.input, VolumeInput):
            values["input"]["shape"] = list(self.input.shape)
        return values


class TokenBatch(NamedTuple):
    """Tokenised windows: ``input_ids`` [B, L] int64 and ``mask`` [B, L] bool, True on real bases.

    Padding, where windows differ in length, is on the right.
    """

    input_ids: Int[Tensor, "batch length"]
    mask: Bool[Tensor, "batch length"]


class Encoder(nn.Module, ABC):
    """A frozen network with pooled features as its output.

    ``backbone`` is the network itself: parameters named as upstream names them, ``forward``
    returning upstream's last hidden state.
    """

    spec: EncoderSpec
    backbone: nn.Module

    def gradient_checkpointing(self, enabled: bool = True) -> None:
        """Switch gradient checkpointing on or off: fine-tuning in less memory and more time.

        Features and gradients are the same either way.

        Raises
        ------
        ValueError
            The network has no layers that can be recomputed (see `encoders.recompute`).
        """
        set_gradient_checkpointing(self.backbone, enabled)


class DnaEncoder(Encoder):
    """DNA windows in, one vector a strand out."""

    @abstractmethod
    def tokenize(self, sequences: Sequence[str]) -> TokenBatch:
        """Turn DNA strings into ids, one token a base, padded on the right, with a mask.

        Raises
        ------
        InputError
            A sequence is empty or longer than ``spec.input.max_length_bp``.
        """

    @abstractmethod
    def hidden(
        self, input_ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length dim strand"]:
        """Hidden states of both strands; position i of strand 1 lies over position i of strand 0.

        Masked positions are zero, and never influence the others.
        """

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        weights: Float[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch dim strand"]:
        """Weighted mean of the hidden states over real bases, for each strand.

        Parameters
        ----------
        input_ids, mask : Tensor [B, L]
            As `tokenize` gives them.
        weights : Tensor [B, L], optional
            Non-negative weight of each base (exons, a stretch around a variant); ones by default.

        Returns
        -------
        Tensor [B, D, 2]
            In float32 at least, whatever the network's arithmetic.

        Raises
        ------
        ValueError
            The weights of a window sum to zero.
        """
        check_pooling_weights(mask, weights)
        return pool_bases(self.hidden(input_ids, mask), mask, weights)


def pool_bases(
    hidden: Float[Tensor, "batch length dim strand"],
    mask: Bool[Tensor, "batch length"],
    weights: Float[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch dim strand"]:
    """Weighted mean over real bases; arguments as `DnaEncoder.forward` takes them.

    Returns
    -------
    Tensor [B, D, S]
        In float32 at least: the sum of 70,000 bases is no float16, and 1,002 no bfloat16.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    base_weights = mask.to(wide)
    if weights is not None:
        base_weights = base_weights * weights.to(wide)
    pooled = torch.einsum("blds,bl->bds", hidden.to(wide), base_weights)
    return pooled / base_weights.sum(dim=1)[:, None, None]


def check_pooling_weights(
    mask: Bool[Tensor, "batch length"], weights: Float[Tensor, "batch length"] | None
) -> None:
    """Raise ValueError where the weights of a window's real bases sum to zero or below."""
    total = mask.sum(dim=1) if weights is None else (mask * weights).sum(dim=1)
    if not bool((total > 0).all()):
        raise ValueError("the pooling weights of a window sum to zero; give some base a weight")


class BrainEncoder(Encoder):
    """fMRI segments in, one vector a segment out."""

    @abstractmethod
    def forward(
        self,
        segments: Float[Tensor, "batch *shape"],  # noqa: F821  # a shape
        xyz: Float[Tensor, "batch parcels 3"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Pooled features of segments prepared as ``spec.input`` says.

        Parameters
        ----------
        segments : Tensor [B, P, T] or [B, 1, X, Y, Z, T]
            Parcels or volumes, normalised and ordered as ``spec.input`` says.
        xyz : Tensor [B, P, 3], optional
            Parcel coordinates in mm; wanted when ``spec.input.needs_xyz``.
        """
