"""The trained pair of towers: features in, latents of the shared space out. Needs no lightning."""

import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from encoders.errors import InputError, Problem
from encoders.weights import load_strict
from multimodal.features.tables import BrainFeatures, GeneFeatures
from projectors.pooling import MotionWeighting, motion_weights, pool_haplotypes, pool_segments
from projectors.strand import MergeMode, check_merge_mode, merge
from projectors.tower import Tower

CONFIG_FORMAT = 1
_CHUNK = 4096


class Aligner(nn.Module):
    """Gene and brain tower, and how their features are pooled.

    Parameters
    ----------
    gene, brain : Tower
        Fitted towers with latents of equal size.
    windows : list of str
        Names of the gene windows the tower was fitted on, in order.
    strand_merge : str
        See `projectors.strand.merge`.
    segment_weighting : {"motion", "mean"}
        See `projectors.pooling.motion_weights`.
    temperature : float
        Where the learned softmax temperature starts.
    """

    def __init__(
        self,
        gene: Tower,
        brain: Tower,
        windows: list[str],
        strand_merge: MergeMode = "mean",
        segment_weighting: MotionWeighting = "motion",
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        self.gene, self.brain = gene, brain
        self.windows = list(windows)
        self.strand_merge = check_merge_mode(strand_merge)
        if segment_weighting not in get_args(MotionWeighting):
            raise InputError(
                Problem(
                    "unknown-motion-weighting",
                    "segment_weighting",
                    repr(segment_weighting),
                    " or ".join(get_args(MotionWeighting)),
                )
            )
        self.segment_weighting = segment_weighting
        self.log_scale = nn.Parameter(torch.tensor(-float(np.log(temperature))))

    def embed_genes(
        self, features: GeneFeatures, covariates: np.ndarray | None = None
    ) -> Float32[np.ndarray, "subject latent"]:
        """Latents of subjects' genomes.

        Each distinct input is run once and in float64, so equal inputs give bit-equal latents, and
        a subject's latent does not depend on who else is embedded.

        Parameters
        ----------
        features : GeneFeatures
            Of the windows the tower was fitted on.
        covariates : ndarray [n, c], optional
            Wanted by towers that residualise, coded as for `fit`; others do not look at them.

        Returns
        -------
        ndarray [n, latent_dim] float32
            Unit length.

        Raises
        ------
        InputError
            Windows, feature size or covariates are not what the tower was fitted on, or a feature
            is not finite.
        """
        if list(features.windows) != self.windows:
            raise InputError(_window_problem(features.windows, self.windows))
        pooled = pool_genes(features, self.strand_merge)
        return _embed(self.gene, pooled, covariates, features.participant_ids, "gene")

    def embed_brains(
        self, features: BrainFeatures, covariates: np.ndarray | None = None
    ) -> Float32[np.ndarray, "subject latent"]:
        """Latents of subjects' brains; as `embed_genes`.

        Raises
        ------
        InputError
            Also where a subject has no segment.
        """
        pooled = pool_brains(features, self.segment_weighting)
        return _embed(self.brain, pooled, covariates, features.participant_ids, "brain")

    def config(self) -> dict[str, Any]:
        """Return all that rebuilds the aligner but its state, as plain JSON-ready values."""
        return {
            "format": CONFIG_FORMAT,
            "gene": self.gene.config(),
            "brain": self.brain.config(),
            "windows": list(self.windows),
            "strand_merge": self.strand_merge,
            "segment_weighting": self.segment_weighting,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Aligner":
        """Make an unfitted aligner from what `config` gave; load its state dict next."""
        if config.get("format") != CONFIG_FORMAT:
            raise InputError(
                Problem(
                    "aligner-format",
                    "aligner configuration",
                    f"format {config.get('format')!r}",
                    f"format {CONFIG_FORMAT}",
                    "use the version of genebold that wrote it",
                )
            )
        return cls(
            Tower.from_config(config["gene"]),
            Tower.from_config(config["brain"]),
            config["windows"],
            config["strand_merge"],
            config["segment_weighting"],
        )

    def save(self, path: Path) -> dict[str, Any]:
        """Write all parameters and buffers to a safetensors file, in one step.

        Parameters
        ----------
        path : Path
            The file; replaced if it exists.

        Returns
        -------
        dict
            The configuration `load` wants, JSON-ready.
        """
        from safetensors.torch import save

        path = Path(path)
        state = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(save(state))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return self.config()

    @classmethod
    def load(cls, config: dict[str, Any], path: Path) -> "Aligner":
        """Read an aligner that `save` wrote; in eval mode.

        Raises
        ------
        InputError
            The file is missing or damaged, or its tensors are not those of `config`.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                Problem(
                    "unreadable-towers",
                    str(path),
                    f"cannot be read ({error})",
                    "a safetensors file that genebold wrote",
                    "copy the bundle again, or train again",
                )
            ) from error
        aligner = cls.from_config(config)
        load_strict(aligner, state, source=str(path))
        return aligner.eval()


def pool_genes(
    features: GeneFeatures, strand_merge: MergeMode
) -> Float[Tensor, "subject window dim"]:
    """Merge strands and average haplotypes: GeneFeatures to float64 [n, W, D']."""
    distinct = torch.from_numpy(np.asarray(features.distinct, dtype=np.float64))
    return pool_haplotypes(merge(distinct, strand_merge), torch.from_numpy(features.index))


def pool_brains(
    features: BrainFeatures, segment_weighting: MotionWeighting
) -> Float[Tensor, "subject 1 dim"]:
    """Pool segments into subjects: BrainFeatures to float64 [n, 1, D]."""
    fd_mm = torch.from_numpy(np.asarray(features.mean_fd_mm, dtype=np.float64))
    pooled = pool_segments(
        torch.from_numpy(np.asarray(features.values, dtype=np.float64)),
        torch.from_numpy(features.subject),
        torch.from_numpy(features.run),
        motion_weights(fd_mm, segment_weighting),
        len(features.participant_ids),
    )
    return pooled[:, None, :]


def covariate_tensor(covariates: np.ndarray | None, subjects: int) -> Tensor | None:
    """Covariates as float64, checked for shape and missing values."""
    if covariates is None:
        return None
    values = np.asarray(covariates, dtype=np.float64)
    if values.ndim != 2 or len(values) != subjects or not np.isfinite(values).all():
        raise InputError(
            Problem(
                "bad-covariates",
                "covariates",
                f"a table of shape {values.shape}, "
                f"{int((~np.isfinite(values)).sum())} values missing",
                f"{subjects} rows without missing values",
            )
        )
    return torch.from_numpy(values)


@torch.no_grad()
def _embed(
    tower: Tower,
    pooled: Tensor,
    covariates: np.ndarray | None,
    participant_ids: list[str],
    side: str,
) -> Float32[np.ndarray, "subject latent"]:
    """Run each distinct row of a tower's input once, in float64."""
    finite = torch.isfinite(pooled).flatten(1).all(dim=1).numpy()
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise InputError(
            Problem(
                "features-not-finite",
                f"{side} features of {', '.join(participant_ids[row] for row in bad[:10])}",
                f"{len(bad)} subjects with NaN or infinite features",
                "finite numbers",
                "encode these subjects again, or leave them out",
            )
        )
    extra = covariate_tensor(covariates, len(pooled)) if tower.standardiser.covariates else None
    # Adding zero turns -0.0 into 0.0, so that equal rows have equal bytes.
    table = [pooled.flatten(1).numpy() + 0.0]
    if extra is not None:
        table.append(extra.numpy() + 0.0)
    first, inverse = _distinct_rows(np.hstack(table))
    exact = Tower.from_config(tower.config()).double().eval()
    exact.load_state_dict(tower.state_dict())
    latents = [
        exact(pooled[rows], None if extra is None else extra[rows])
        for rows in torch.from_numpy(first).split(_CHUNK)
    ]
    result: Float32[np.ndarray, "subject latent"] = torch.cat(latents).float().numpy()[inverse]
    return result


def _distinct_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row of each distinct content, and the content each row has."""
    seen: dict[bytes, int] = {}
    first: list[int] = []
    inverse = np.empty(len(table), dtype=np.int64)
    for number, row in enumerate(table):
        content = seen.setdefault(row.tobytes(), len(first))
        if content == len(first):
            first.append(number)
        inverse[number] = content
    return np.asarray(first, dtype=np.int64), inverse


def _window_problem(found: list[str], wanted: list[str]) -> Problem:
    missing = [name for name in wanted if name not in set(found)]
    extra = [name for name in found if name not in set(wanted)]
    detail = (
        f"missing {missing[:5]}, not known {extra[:5]}" if missing or extra else "another order"
    )
    return Problem(
        "gene-windows",
        "gene features",
        f"{len(found)} windows, {detail}",
        f"the {len(wanted)} windows the tower was fitted on, in their order",
        "encode with the same regions file and window length",
    )
