"""BrainMT as a brain encoder: prepared volume segments in, one vector a segment out.

Upstream publishes code (MIT) and no weights. Volumes are those of UK Biobank's and HCP's own
preprocessing in MNI space at 2 mm, read as stored (left, anterior, superior) and not resampled;
its script normalises each recording by one mean and standard deviation over all voxels and frames
that are not exactly 0, and gives the background the smallest value of the rest (``z-norm`` without
``fill_zeroback``, the settings it ships with).
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from encoders.base import BrainEncoder, EncoderSpec, VolumeInput
from encoders.brainmt.checkpoint import load_network, read_config
from encoders.brainmt.config import BrainMTConfig, token_grid
from encoders.brainmt.model import BrainMT
from encoders.errors import InputError, Problem
from encoders.weights import Weights, read_weights

PAPER = (
    "Kannan, Lindquist and Caffo (2025), BrainMT: A Hybrid Mamba-Transformer Architecture for "
    "Modeling Long-Range Dependencies in Functional MRI Data, MICCAI, arXiv 2506.22591"
)
# Upstream's names of its data: the cohort, and the repetition time in seconds.
DATASETS: dict[str, tuple[str, float | None]] = {"ukb": ("UK Biobank", 0.735), "hcp": ("HCP", 0.72)}
MNI_2MM_SHAPE = (91, 109, 91)


class BrainMTEncoder(BrainEncoder):
    """CLS token (or token mean) of a segment of volumes.

    Parameters
    ----------
    spec : EncoderSpec
    backbone : BrainMT
    """

    backbone: BrainMT

    def __init__(self, spec: EncoderSpec, backbone: BrainMT) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone

    def forward(
        self,
        segments: Float[Tensor, "batch channel x y z frame"],
        xyz: Float[Tensor, "batch parcel 3"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Return the feature of each segment.

        The CLS token after the last attention block, which is what upstream's head takes; with
        ``pooling: mean``, the mean over all other tokens.

        Parameters
        ----------
        segments : Tensor [B, C, X, Y, Z, T]
            As ``spec.input`` says; C is 1 but for networks of several channels.
        xyz : optional
            Not used.

        Raises
        ------
        InputError
            Another number of channels, voxels or frames than ``spec.input`` says.
        """
        problems = list(_find_problems(self.spec, self.backbone.config, segments))
        if problems:
            raise InputError(problems)
        volumes = segments.to(self.backbone.cls_token).permute(0, 5, 1, 3, 2, 4)
        hidden: Tensor = self.backbone(volumes)
        return hidden[:, 0] if self.backbone.config.pooling == "cls" else hidden[:, 1:].mean(1)


def load_brainmt(
    weights: str | PathLike[str] | Weights | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> BrainMTEncoder:
    """Load BrainMT, in the released one-direction form or the two-direction one.

    Parameters
    ----------
    weights, revision, device, dtype, seed
        As `encoders.load_encoder`; without weights, the published architecture but for `config`.
    config : mapping, optional
        Upstream's constructor arguments and ours, see `BrainMTConfig`. They go before those in
        the file.

    Raises
    ------
    InputError
        As `encoders.load_encoder`.
    """
    stored = None if weights is None else read_weights(weights, revision=revision)
    arguments = read_config(stored, config)
    backbone, weights_id, digest = load_network(arguments, stored, seed, getattr(torch, dtype))
    spec = _make_spec(arguments, backbone, weights_id, digest, stored)
    return BrainMTEncoder(spec, backbone.to(device)).eval()


def _make_spec(
    config: BrainMTConfig,
    backbone: BrainMT,
    weights_id: str,
    weights_sha256: str,
    stored: Weights | None,
) -> EncoderSpec:
    cohorts, tr_s = _training_data(config.dataset) if stored is not None else ((), None)
    in_mni = config.img_size == MNI_2MM_SHAPE and config.voxel_mm == 2
    return EncoderSpec(
        name="brainmt",
        modality="brain",
        feature_dim=config.embed_dim,
        input=VolumeInput(
            shape=config.img_size,
            frames=config.num_frames,
            voxel_mm=config.voxel_mm,
            tr_s=tr_s,
            space="MNI152NLin6Asym" if in_mni else None,
            normalisation=config.normalisation,
            orientation="LAS",
        ),
        parameters=sum(p.numel() for p in backbone.parameters() if p.requires_grad),
        weights_id=weights_id,
        weights_sha256=weights_sha256,
        code_license="MIT",
        weight_license="none" if stored is None else stored.license or "NOASSERTION",
        pretraining_cohorts=cohorts,
        paper=PAPER,
        config=config.as_dict(),
    )


def _training_data(dataset: str | None) -> tuple[tuple[str, ...], float | None]:
    """Return cohorts and repetition time; without a name, either of upstream's may have been it."""
    if dataset is None:
        return tuple(cohort for cohort, _ in DATASETS.values()), None
    cohort, tr_s = DATASETS.get(dataset, (dataset, None))
    return (cohort,), tr_s


def _find_problems(spec: EncoderSpec, config: BrainMTConfig, segments: Tensor) -> list[Problem]:
    where = f"{spec.name}: segments"
    if segments.ndim != 6:
        wanted = "six: segments, channels, x, y, z, frames"
        return [Problem("segment-shape", where, f"{segments.ndim} axes", wanted)]
    _, channels, *shape, frames = segments.shape
    problems = []
    if channels != config.in_chans:
        found, wanted = f"{channels} channels", f"{config.in_chans} (in_chans)"
        problems.append(Problem("segment-size", where, found, wanted))
    if frames != config.num_frames:
        found, wanted = f"{frames} frames", f"{config.num_frames} (num_frames)"
        problems.append(Problem("segment-size", where, found, wanted))
    return problems + _find_shape_problems(where, config, tuple(shape))


def _find_shape_problems(
    where: str, config: BrainMTConfig, shape: tuple[int, ...]
) -> list[Problem]:
    """Compare a volume with the configuration.

    Upstream's configurations may name a size that the weights were not made for, because upstream
    never reads it: then any volume of the right number of tokens is taken.
    """
    size = " x ".join(map(str, shape))
    if config.fits_img_size:
        wanted = " x ".join(map(str, config.img_size))
        if shape == config.img_size:
            return []
        return [Problem("segment-size", where, f"{size} voxels", f"{wanted} (img_size)")]
    grid = token_grid(shape)
    tokens = grid[0] * grid[1] * grid[2]
    if tokens == config.num_patches:
        return []
    return [
        Problem(
            "segment-size",
            where,
            f"{size} voxels, which make {tokens} tokens a frame",
            f"{config.num_patches} tokens, for that many positions are in the weights",
            "set img_size in the configuration to the size of the volumes it was trained on",
        )
    ]
