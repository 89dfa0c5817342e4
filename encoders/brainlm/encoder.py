"""BrainLM as brain encoders: prepared parcel segments in, one vector a segment out.

The published weights are licensed CC-BY-NC-ND-4.0 (no commercial use, no derivatives); the code
they come from is Apache-2.0.

Normalisation. Upstream does not record what each published checkpoint was trained on, and its two
preprocessing scripts differ. The specs name the closest of the toolkit's normalisations:

- first family: mean over time removed from each parcel, divided by 41.44047 (upstream's
  ``Subtract_Mean_Divide_Global_STD``, which its notebooks for the 2023-06-06 checkpoint read);
- second family: median and interquartile range of each parcel (the paper's robust scaling, which
  upstream takes over all recordings and the toolkit within one), then divided by 5.6430855.
  Upstream's own robust column subtracts median / IQR where it means to divide; not followed.
"""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoders.base import BrainEncoder, EncoderSpec, ParcelInput
from encoders.brainlm.checkpoint import (
    WeightSource,
    build,
    fill,
    list_unused,
    read_checkpoint,
)
from encoders.brainlm.config import (
    PUBLISHED_NYSTROMFORMER,
    PUBLISHED_VITMAE,
    BrainLMConfig,
)
from encoders.brainlm.nystromformer import NystromformerBackbone
from encoders.brainlm.nystromformer_decoder import NystromformerDecoder
from encoders.brainlm.vitmae import ViTMAEBackbone, find_padding
from encoders.brainlm.vitmae_decoder import ViTMAEDecoder
from encoders.errors import InputError, Problem

PAPER = "Ortega Caro et al. (2024), BrainLM: A foundation model for brain activity recordings, ICLR"
# The paper counts HCP's recordings among its training hours and tests on them: taken as seen.
PRETRAINING_COHORTS = ("UK Biobank", "HCP")
UK_BIOBANK_TR_S = 0.735
A424_PARCELS = 424
# Standard deviation of UK Biobank's recordings after each parcel's mean is removed, as upstream's
# convert_ukbiobank_to_arrow.py has it.
NYSTROMFORMER_DIVIDE_BY = 41.44047
# What upstream's tutorial divides recordings by before the ViT-MAE sees them.
VITMAE_DIVIDE_BY = 5.6430855


class NystromformerEncoder(BrainEncoder):
    """The first family: CLS token (or token mean) of the unmasked recording.

    Parameters
    ----------
    spec : EncoderSpec
    backbone : NystromformerBackbone
    """

    backbone: NystromformerBackbone

    def __init__(self, spec: EncoderSpec, backbone: NystromformerBackbone) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone

    def forward(
        self,
        segments: Float[Tensor, "batch parcel frame"],
        xyz: Float[Tensor, "batch parcel 3"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Return the feature of each segment, tokens in natural order, nothing masked.

        The CLS token of the last hidden state, which is what upstream's own downstream tasks
        take; with ``pooling: mean``, the mean over all other tokens.

        Parameters
        ----------
        segments : Tensor [B, P, T]
            As ``spec.input`` says; parcels in the atlas' order.
        xyz : Tensor [B, P, 3]
            Parcel coordinates in mm.

        Raises
        ------
        InputError
            Another number of parcels or frames than ``spec.input`` says, or no coordinates.
        """
        _check_segments(self.spec, segments)
        if xyz is None:
            raise InputError(
                Problem(
                    "xyz-missing",
                    f"{self.spec.name}: xyz",
                    "no parcel coordinates",
                    "x, y, z of each parcel in mm",
                    "give the atlas a table with x, y, z",
                )
            )
        like = self.backbone.vit.layernorm.weight
        segments, xyz = segments.to(like), xyz.to(like)
        if self.backbone.config.exact_attention:
            return self._pool(self.backbone(segments, xyz))
        # The approximation is scaled by the whole batch: one at a time keeps segments independent.
        alone = zip(segments.split(1), xyz.split(1), strict=True)
        return torch.cat([self._pool(self.backbone(segment, place)) for segment, place in alone])

    def _pool(self, hidden: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch dim"]:
        return hidden[:, 0] if self.backbone.config.pooling == "cls" else hidden[:, 1:].mean(1)


class ViTMAEEncoder(BrainEncoder):
    """The second family: CLS token (or token mean) of the unmasked recording.

    Parameters
    ----------
    spec : EncoderSpec
    backbone : ViTMAEBackbone
    """

    backbone: ViTMAEBackbone

    def __init__(self, spec: EncoderSpec, backbone: ViTMAEBackbone) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone

    def forward(
        self,
        segments: Float[Tensor, "batch parcel frame"],
        xyz: Float[Tensor, "batch parcel 3"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Return the feature of each segment, nothing masked.

        The CLS token of the last hidden state, which is what upstream's own downstream tasks
        take; with ``pooling: mean``, the mean over the patches that hold part of the recording.

        Parameters
        ----------
        segments : Tensor [B, P, T]
            As ``spec.input`` says; parcels in ascending order of Y.
        xyz : optional
            Not used: the place of a parcel in the image says where it lies.

        Raises
        ------
        InputError
            A number of parcels or frames that ``spec.input`` or the padding does not take.
        """
        config = self.backbone.config
        _check_segments(self.spec, segments, longest=config.padded_size)
        like = self.backbone.vit.layernorm.weight
        hidden = self.backbone(to_pixels(segments.to(like), config.num_channels))
        if config.pooling == "cls":
            return hidden[:, 0]
        parcels, frames = segments.shape[1:]
        padding = find_padding(parcels, frames, config.padded_size)
        patches = hidden[:, 1:].unflatten(1, (config.grid, config.grid))
        rows = _overlapping(padding.rows, parcels, config.patch_size)
        columns = _overlapping(padding.columns, frames, config.patch_size)
        return patches[:, rows, columns].mean((1, 2))


def to_pixels(
    segments: Float[Tensor, "batch parcel frame"], channels: int
) -> Float[Tensor, "batch channel parcel frame"]:
    """Repeat recordings over the channels of an image."""
    return segments[:, None].expand(-1, channels, -1, -1)


def load_nystromformer(
    weights: str | PathLike[str] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> NystromformerEncoder:
    """Load BrainLM's first family (``BrainLMForPretraining``: old_13M, 2023-06-06 checkpoint).

    Parameters
    ----------
    weights, revision, device, dtype, seed
        As `encoders.load_encoder`; without weights, the shape of old_13M but for `config`.
    config : mapping, optional
        Arguments of upstream's ``BrainLMConfig``, and ``pooling``: ``"cls"`` or ``"mean"``.

    Raises
    ------
    InputError
        As `encoders.load_encoder`.
    """
    stored, arguments = read_checkpoint(weights, config, revision, PUBLISHED_NYSTROMFORMER)
    unused = list_unused(arguments, NystromformerDecoder)
    backbone = build(NystromformerBackbone, arguments)
    source = fill(backbone, stored, unused, seed, dtype)
    spec_input = ParcelInput(
        parcels=arguments.num_brain_voxels,
        frames=arguments.num_timepoints_per_voxel,
        order="atlas",
        needs_xyz=True,
        normalisation="subtract_mean_divide",
        statistics={"divide_by": NYSTROMFORMER_DIVIDE_BY},
    )
    spec = _make_spec(arguments, backbone, source, spec_input)
    return NystromformerEncoder(spec, backbone.to(device)).eval()


def load_vitmae(
    weights: str | PathLike[str] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> ViTMAEEncoder:
    """Load BrainLM's second family (``ViTMAEForPreTraining`` with padding: 111M, 650M).

    Parameters
    ----------
    weights, revision, device, dtype, seed
        As `encoders.load_encoder`; without weights, the shape of the 111M model but for `config`.
    config : mapping, optional
        Arguments of upstream's ``ViTMAEConfig``, and three of ours: ``pooling`` (``"cls"`` or
        ``"mean"``), ``parcels`` and ``frames`` (424 and 200; None for any even number).

    Raises
    ------
    InputError
        As `encoders.load_encoder`.
    """
    stored, arguments = read_checkpoint(weights, config, revision, PUBLISHED_VITMAE)
    unused = list_unused(arguments, ViTMAEDecoder)
    backbone = build(ViTMAEBackbone, arguments)
    source = fill(backbone, stored, unused, seed, dtype)
    spec_input = ParcelInput(
        parcels=arguments.parcels,
        frames=arguments.frames,
        order="y",
        normalisation="robust_parcel",
        statistics={"divide_by": VITMAE_DIVIDE_BY},
    )
    spec = _make_spec(arguments, backbone, source, spec_input)
    return ViTMAEEncoder(spec, backbone.to(device)).eval()


def _check_segments(spec: EncoderSpec, segments: Tensor, longest: int | None = None) -> None:
    """Refuse segments of another size than the spec says; `longest` is the padded image's side."""
    if segments.ndim != 3:
        found = f"{segments.ndim} axes"
        wanted = "three: segments, parcels, frames"
        raise InputError(Problem("segment-shape", f"{spec.name}: segments", found, wanted))
    assert isinstance(spec.input, ParcelInput)
    problems = []
    sizes = {"parcels": spec.input.parcels, "frames": spec.input.frames}
    for (name, wanted_size), found_size in zip(sizes.items(), segments.shape[1:], strict=True):
        where, found = f"{spec.name}: {name}", str(found_size)
        if wanted_size is not None and found_size != wanted_size:
            problems.append(Problem("segment-size", where, found, str(wanted_size)))
        elif longest is not None and (found_size > longest or (longest - found_size) % 2):
            wanted = f"an even number, at most {longest}, for equal padding on both sides"
            problems.append(Problem("segment-size", where, found, wanted))
    if problems:
        raise InputError(problems)


def _overlapping(padding: int, size: int, patch: int) -> slice:
    """Return the patches along one side that hold part of the recording."""
    return slice(padding // patch, -(-(padding + size) // patch))


def _make_spec(
    config: BrainLMConfig,
    backbone: nn.Module,
    source: WeightSource,
    spec_input: ParcelInput,
) -> EncoderSpec:
    """Describe an encoder; fresh weights have seen no cohort and carry no licence."""
    published = not source.fresh
    if published:
        spec_input = replace(
            spec_input,
            tr_s=UK_BIOBANK_TR_S,
            space="MNI152NLin6Asym",
            atlas="A424" if spec_input.parcels == A424_PARCELS else None,
        )
    return EncoderSpec(
        name=config.encoder_name,
        modality="brain",
        feature_dim=config.hidden_size,
        input=spec_input,
        parameters=sum(p.numel() for p in backbone.parameters() if p.requires_grad),
        weights_id=source.id,
        weights_sha256=source.sha256,
        code_license="Apache-2.0",
        weight_license="CC-BY-NC-ND-4.0" if published else "none",
        pretraining_cohorts=PRETRAINING_COHORTS if published else (),
        paper=PAPER,
        config=config.as_dict(),
    )
