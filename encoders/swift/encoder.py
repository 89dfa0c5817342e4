"""SwiFT as a brain encoder: prepared volume segments in, one vector a segment out.

Code and published weights are licensed Apache-2.0.

Input. Upstream scales the values of a whole recording at once (z-scores in its published training),
fills the background with their smallest, and pads or crops to 96 x 96 x 96 voxels of 2 mm in the
order in which FSL stores its MNI templates (left, anterior, superior). A checkpoint names the
dataset of its last training, from which the repetition time follows; without one it is taken to be
that of UK Biobank, on which upstream pretrained.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoders.base import BrainEncoder, EncoderSpec, VolumeInput
from encoders.errors import InputError, Problem
from encoders.swift.checkpoint import (
    BACKBONE_PREFIX,
    HEAD_PREFIX,
    read_checkpoint,
    split_tensors,
)
from encoders.swift.config import SwiFTConfig
from encoders.swift.heads import (
    HEAD_TENSORS,
    EmbeddingHead,
    HiddenHead,
    LinearHead,
    head_like,
)
from encoders.swift.initialise import initialise
from encoders.swift.model import SwiFTBackbone, check_volumes, pool
from encoders.weights import Weights, load_strict, tensors_sha256

PAPER = "Kim et al. (2023), SwiFT: Swin 4D fMRI Transformer, NeurIPS, arXiv:2307.05916"
UK_BIOBANK_TR_S = 0.735
# The paper's datasets: where a file does not say which of them it saw, all are taken as seen.
PRETRAINING_COHORTS = ("UK Biobank", "HCP", "ABCD")


class SwiFTEncoder(BrainEncoder):
    """The mean of SwiFT's last feature map over space and time.

    Parameters
    ----------
    spec : EncoderSpec
    backbone : SwiFTBackbone
    """

    backbone: SwiFTBackbone

    def __init__(self, spec: EncoderSpec, backbone: SwiFTBackbone) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone

    def forward(
        self,
        segments: Float[Tensor, "batch channel x y z frame"],
        xyz: Float[Tensor, "batch parcel 3"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Return the feature of each segment: what upstream's heads take.

        Parameters
        ----------
        segments : Tensor [B, 1, X, Y, Z, T]
            As ``spec.input`` says. (``backbone`` takes fewer frames, too.)
        xyz : optional
            Not used.

        Raises
        ------
        InputError
            Another size than ``spec.input`` says.
        """
        config = self.backbone.config
        check_volumes(segments, config)
        frames, wanted = segments.shape[-1], config.img_size[3]
        if frames != wanted:
            raise InputError(Problem("segment-size", "swift: frames", str(frames), str(wanted)))
        return pool(self.backbone(segments))


class SwiFTWithHead(nn.Module):
    """Backbone and head, under the names of upstream's Lightning module.

    Parameters
    ----------
    model : SwiFTBackbone
    output_head : LinearHead or HiddenHead or EmbeddingHead
    """

    def __init__(
        self, model: SwiFTBackbone, output_head: LinearHead | HiddenHead | EmbeddingHead
    ) -> None:
        super().__init__()
        self.model = model
        self.output_head = output_head

    def forward(
        self, volumes: Float[Tensor, "batch channel x y z frame"]
    ) -> Float[Tensor, "batch output"]:
        """Return logits, predicted values or embeddings of volumes [B, C, X, Y, Z, T]."""
        return self.output_head(self.model(volumes))


def load_swift(
    weights: str | PathLike[str] | Weights | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> SwiFTEncoder:
    """Load SwiFT as an encoder, leaving a checkpoint's head aside.

    Parameters
    ----------
    weights, revision, device, dtype, seed
        As `encoders.load_encoder`; without weights, the published size but for `config`.
    config : mapping, optional
        Arguments of upstream's ``SwinTransformer4D``, and ours of `SwiFTConfig`. Weights that come
        without their hyper-parameters need them, ``last_layer_full_MSA`` included.

    Raises
    ------
    InputError
        As `encoders.load_encoder`.
    """
    stored, arguments = read_checkpoint(weights, config, revision)
    backbone = _build(arguments)
    if stored is None:
        initialise(backbone, seed)
        identity = f"random(seed={seed})", tensors_sha256(backbone.state_dict())
        backbone.to(getattr(torch, dtype))
    else:
        backbone.to(getattr(torch, dtype))
        tensors, head, prefix = split_tensors(stored)
        target = nn.ModuleDict({BACKBONE_PREFIX[:-1]: backbone}) if prefix else backbone
        unused = [name for name in head if name.removeprefix(HEAD_PREFIX) in HEAD_TENSORS]
        load_strict(target, tensors | head, source=stored.id, ignore=unused)
        identity = stored.id, stored.sha256
    spec = _make_spec(arguments, backbone, identity, fresh=stored is None)
    return SwiFTEncoder(spec, backbone.to(device)).eval()


def load_swift_with_head(
    weights: str | PathLike[str] | Weights,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> SwiFTWithHead:
    """Load a whole checkpoint: the backbone and the head it was trained with.

    Which head it is follows from its tensors.

    Parameters
    ----------
    weights, config, revision, device, dtype
        As `load_swift`.

    Returns
    -------
    SwiFTWithHead
        In eval mode.

    Raises
    ------
    InputError
        As `load_swift`; also where the checkpoint has no head.
    """
    stored, arguments = read_checkpoint(weights, config, revision)
    assert stored is not None
    tensors, head_tensors, _ = split_tensors(stored)
    inner = {name.removeprefix(HEAD_PREFIX): tensor for name, tensor in head_tensors.items()}
    with torch.random.fork_rng(devices=[]):
        head = head_like(inner, arguments.feature_dim)
    if head is None:
        raise InputError(
            Problem(
                "head-missing",
                stored.id,
                f"no tensors {HEAD_PREFIX}*",
                "a checkpoint of a whole model: backbone (model.*) and head (output_head.*)",
                "load it with load_encoder for its features alone",
            )
        )
    network = SwiFTWithHead(_build(arguments), head).to(getattr(torch, dtype))
    load_strict(network, tensors | head_tensors, source=stored.id)
    return network.to(device).eval()


def _build(config: SwiFTConfig) -> SwiFTBackbone:
    """Build a backbone to be filled, leaving torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        return SwiFTBackbone(config)


def _make_spec(
    config: SwiFTConfig, backbone: nn.Module, identity: tuple[str, str], *, fresh: bool
) -> EncoderSpec:
    """Describe an encoder; fresh weights have seen no cohort and carry no licence."""
    x, y, z, frames = config.img_size
    cohorts = config.pretraining_cohorts
    spec_input = VolumeInput(
        shape=(x, y, z),
        frames=frames,
        voxel_mm=config.voxel_mm,
        tr_s=config.tr_s if fresh else config.tr_s or UK_BIOBANK_TR_S,
        space=None if fresh else "MNI152NLin6Asym",
        normalisation=config.normalisation,
        orientation="LAS",
    )
    return EncoderSpec(
        name="swift",
        modality="brain",
        feature_dim=config.feature_dim,
        input=spec_input,
        parameters=sum(p.numel() for p in backbone.parameters() if p.requires_grad),
        weights_id=identity[0],
        weights_sha256=identity[1],
        code_license="Apache-2.0",
        weight_license="none" if fresh else "Apache-2.0",
        pretraining_cohorts=() if fresh else PRETRAINING_COHORTS if cohorts is None else cohorts,
        paper=PAPER,
        config=config.as_dict(),
    )
