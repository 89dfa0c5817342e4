"""Functional connectivity as a brain encoder: the baseline that learned features must beat."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoders.base import BrainEncoder, EncoderSpec, ParcelInput
from encoders.errors import InputError, Problem
from encoders.weights import tensors_sha256

# Fisher's z of a correlation of one is infinite; this ends it at 8.4.
LARGEST_CORRELATION = 1 - 1e-7
# Rounding leaves a constant series with a spread of a few units in the last place.
CONSTANT_TOLERANCE = 1e-12


class Connectivity(nn.Module):
    """Pearson correlation between the parcels of a run, without any parameter."""

    def forward(
        self, series: Float[Tensor, "batch parcel frame"]
    ) -> Float[Tensor, "batch parcel parcel"]:
        """Return the correlation matrices in float64.

        A parcel that does not vary has correlation 0 with all others, and with itself.
        """
        series = series.double()
        centred = series - series.mean(2, keepdim=True)
        norm = centred.norm(dim=2, keepdim=True)
        size = series.norm(dim=2, keepdim=True)
        varies = norm > CONSTANT_TOLERANCE * size
        unit = torch.where(varies, centred / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)
        return (unit @ unit.mT).clamp(-1, 1)


class ConnectivityEncoder(BrainEncoder):
    """Fisher-z functional connectivity of whole runs.

    Parameters
    ----------
    dtype : torch.dtype
        Of the features; the arithmetic is float64 throughout.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.backbone = Connectivity()
        self.spec = EncoderSpec(
            name="fc",
            modality="brain",
            feature_dim=None,
            input=ParcelInput(parcels=None, frames=None),
            parameters=0,
            weights_id="none",
            weights_sha256=tensors_sha256({}),
            code_license="Apache-2.0",
            weight_license="none",
            paper="Biswal et al. (1995), Magn Reson Med 34:537-541, doi:10.1002/mrm.1910340409",
        )

    def forward(
        self,
        segments: Float[Tensor, "batch parcel frame"],
        xyz: Float[Tensor, "batch parcel 3"] | None = None,
    ) -> Float[Tensor, "batch pair"]:
        """Return Fisher's z of the correlation of each pair of parcels.

        Pairs run as ``numpy.triu_indices(parcels, 1)``: (0, 1), (0, 2), ... Correlations are
        limited to 1 - 1e-7 in size before arctanh; a constant parcel's are 0.

        Parameters
        ----------
        segments : Tensor [B, P, T]
            Whole runs; runs of other lengths go in calls of their own.
        xyz : optional
            Not used.

        Returns
        -------
        Tensor [B, P (P - 1) / 2]

        Raises
        ------
        InputError
            Fewer than two parcels or three frames; values that are NaN or infinite.
        """
        _check_segments(segments)
        correlation = self.backbone(segments)
        parcels = correlation.shape[1]
        first, second = torch.triu_indices(parcels, parcels, offset=1, device=correlation.device)
        pairs = correlation[:, first, second]
        return pairs.clamp(-LARGEST_CORRELATION, LARGEST_CORRELATION).arctanh().to(self.dtype)


def load_connectivity(
    weights: str | PathLike[str] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> ConnectivityEncoder:
    """Return the functional-connectivity encoder; it takes neither weights nor arguments.

    Parameters
    ----------
    weights, config, revision
        Must be left out.
    device, dtype, seed
        As `encoders.load_encoder`; there is nothing to draw.

    Raises
    ------
    InputError
        Weights or arguments are given.
    """
    given = {"weights": weights, "config": config or None, "revision": revision}
    problems = [
        Problem("fc-takes-none", f"fc: {name}", repr(value), "nothing: fc has no weights")
        for name, value in given.items()
        if value is not None
    ]
    if problems:
        raise InputError(problems)
    return ConnectivityEncoder(getattr(torch, dtype)).to(device).eval()


def _check_segments(segments: Tensor) -> None:
    if segments.ndim != 3 or segments.shape[1] < 2 or segments.shape[2] < 3:
        raise InputError(
            Problem(
                "segment-shape",
                "fc: segments",
                f"shape {list(segments.shape)}",
                "runs of at least two parcels and three frames [runs, parcels, frames]",
            )
        )
    finite = torch.isfinite(segments)
    if not bool(finite.all()):
        places = (~finite).nonzero()
        run, parcel, frame = (place + 1 for place in places[0].tolist())
        raise InputError(
            Problem(
                "segment-not-finite",
                "fc: segments",
                f"{len(places):,} values are NaN or infinite, the first in run {run}, parcel "
                f"{parcel}, frame {frame}",
                "finite numbers: a parcel with a gap would count as one that does not vary",
                "leave these frames or runs out",
            )
        )
