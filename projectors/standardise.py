"""The fitted, fixed way from pooled features to a head's input.

The signal is a small difference: two people's pooled windows differ in the fourth digit, rare
variants move single dimensions, and connectivity has more dimensions than a cohort has subjects.
So pooled features are centred, scaled and reduced before a network sees them, by statistics of the
training subjects alone, in float64. All fitted numbers are buffers: a tower's state is complete.

Scaling every dimension to unit variance (``scale="dimension"``) makes a dimension that one
carrier of a rare variant moves as loud as one that all subjects share. The default scales whole
windows instead (``"window"``: each window's total variance becomes one, as in multiple factor
analysis, Escofier & Pages 1994, doi:10.1016/0167-9473(94)90135-X), so that common variation
leads the principal components.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.errors import InputError, Problem

Scale = Literal["none", "window", "dimension"]
SCALES: tuple[Scale, ...] = get_args(Scale)

# Spread below this share of a value's size is float32 rounding, not a difference of subjects.
_ROUNDING = 2.0**-22
_EXACT_SVD_LIMIT = 4096
_RANK_TOLERANCE = 1e-7
_COLLINEAR = 1e-10
_FILL_IN = "fill in the missing values, or leave these subjects out"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StandardiserOptions:
    """How features are standardised.

    Parameters
    ----------
    scale : {"window", "dimension", "none"}
        What gets unit variance: each window as a whole, each dimension, nothing.
    components : int or None
        Most principal components kept; None for no PCA.
    explained_variance : float
        Keep no more components than explain this share of the variance, in (0, 1].
    whitening_shrinkage : float
        From 0 (components of equal variance) to 1 (components keep their relative variance):
        each is divided by sqrt((1 - s) variance + s mean variance).
    """

    scale: Scale = "window"
    components: int | None = 32
    explained_variance: float = 1.0
    whitening_shrinkage: float = 0.5

    def __post_init__(self) -> None:
        problems = []
        if self.scale not in SCALES:
            problems.append(
                Problem(
                    "unknown-scale", "standardiser.scale", repr(self.scale), " or ".join(SCALES)
                )
            )
        whole = isinstance(self.components, int) and not isinstance(self.components, bool)
        if self.components is not None and not (whole and self.components >= 1):
            problems.append(
                Problem(
                    "bad-components",
                    "standardiser.components",
                    str(self.components),
                    "a whole number of at least 1, or null for no PCA",
                )
            )
        if not 0 < self.explained_variance <= 1:
            problems.append(
                Problem(
                    "bad-explained-variance",
                    "standardiser.explained_variance",
                    str(self.explained_variance),
                    "more than 0, at most 1",
                )
            )
        if not 0 <= self.whitening_shrinkage <= 1:
            problems.append(
                Problem(
                    "bad-shrinkage",
                    "standardiser.whitening_shrinkage",
                    str(self.whitening_shrinkage),
                    "from 0 to 1",
                )
            )
        if problems:
            raise InputError(problems)

    def as_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON-ready values."""
        return asdict(self)


class Standardiser(nn.Module):
    """Residualise, centre, scale and reduce pooled features by training statistics.

    Make one with `Standardiser.fit`; the constructor makes an unfitted one of given sizes, to
    load fitted buffers into.

    Parameters
    ----------
    windows : int
        Number W of windows (1 for a brain).
    dim : int
        Size D of a window's feature.
    joined : bool
        Whether windows are concatenated before the PCA (output [n, k]) or stay apart and share
        one basis (output [n, W, k]).
    components : int or None
        Number k of components; None for no PCA.
    covariates : int
        Number c of covariates regressed out; 0 for none.
    """

    covariate_mean: Tensor
    coefficients: Tensor
    centre: Tensor
    scale: Tensor
    basis: Tensor
    component_scale: Tensor

    def __init__(
        self, windows: int, dim: int, joined: bool, components: int | None, covariates: int = 0
    ) -> None:
        super().__init__()
        self.windows, self.dim, self.joined = windows, dim, joined
        self.components, self.covariates = components, covariates
        width = windows * dim if joined else dim
        self.out_dim = width if components is None else components

        def register(name: str, *shape: int) -> None:
            self.register_buffer(name, torch.zeros(*shape, dtype=torch.float64))

        register("covariate_mean", covariates)
        register("coefficients", covariates, windows * dim)
        register("centre", windows, dim)
        register("scale", windows, dim)
        register("basis", 0 if components is None else width, self.out_dim)
        register("component_scale", self.out_dim)

    @classmethod
    def fit(
        cls,
        features: Float[Tensor, "subject window dim"],
        options: StandardiserOptions,
        *,
        joined: bool = True,
        covariates: Float[Tensor, "subject covariate"] | None = None,
    ) -> "Standardiser":
        """Fit on training subjects.

        Parameters
        ----------
        features : Tensor [n, W, D] float64
            Pooled features of the training subjects only.
        options : StandardiserOptions
        joined : bool
            See the class.
        covariates : Tensor [n, c] float64, optional
            Covariates to regress out of every dimension, with an intercept, by least squares.

        Raises
        ------
        InputError
            Fewer than two subjects, a feature or covariate that is not finite, or so many
            covariates that they explain any feature.
        """
        _check_fit_input(features, covariates)
        subjects, windows, dim = features.shape
        values = features.to(torch.float64).reshape(subjects, -1).numpy()
        count = 0 if covariates is None else covariates.shape[1]
        mean, coefficients = np.zeros(count), np.zeros((count, values.shape[1]))
        raw_size = np.abs(values).max(axis=0)
        if covariates is not None and count:
            mean, coefficients = _regress(covariates.to(torch.float64).numpy(), values)
            values = values - (covariates.to(torch.float64).numpy() - mean) @ coefficients
        centre = values.mean(axis=0)
        centred = (values - centre).reshape(subjects, windows, dim)
        scale = _scales(centred, raw_size.reshape(windows, dim), options.scale)
        scaled = (centred * scale).reshape((subjects, -1) if joined else (subjects * windows, dim))
        basis, component_scale = _reduce(scaled, options)
        fitted = cls(windows, dim, joined, None if basis is None else basis.shape[1], count)
        state = {
            "covariate_mean": mean,
            "coefficients": coefficients,
            "centre": centre.reshape(windows, dim),
            "scale": scale,
            "basis": fitted.basis.numpy() if basis is None else basis,
            "component_scale": component_scale,
        }
        fitted.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
        return fitted

    def sizes(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain JSON-ready values."""
        return {
            "windows": self.windows,
            "dim": self.dim,
            "joined": self.joined,
            "components": self.components,
            "covariates": self.covariates,
        }

    def forward(
        self,
        features: Float[Tensor, "subject window dim"],
        covariates: Float[Tensor, "subject covariate"] | None = None,
    ) -> Float[Tensor, "subject *out"]:  # noqa: F821  # a shape
        """Standardise pooled features; gradients pass through to them.

        Parameters
        ----------
        features : Tensor [n, W, D]
        covariates : Tensor [n, c], optional
            Wanted exactly when the standardiser was fitted with covariates.

        Returns
        -------
        Tensor [n, k] or, with windows apart, [n, W, k]; float64

        Raises
        ------
        InputError
            Covariates are missing, not asked for, of another number or not finite; or the
            features have another shape.
        """
        self._check_input(features, covariates)
        values = features.to(torch.float64)
        if covariates is not None and self.covariates:
            explained = (covariates.to(torch.float64) - self.covariate_mean) @ self.coefficients
            values = values - explained.reshape(values.shape)
        values = (values - self.centre) * self.scale
        if self.joined:
            values = values.flatten(1)
        if self.components is not None:
            values = values @ self.basis
        return values * self.component_scale

    def _check_input(self, features: Tensor, covariates: Tensor | None) -> None:
        if tuple(features.shape[1:]) != (self.windows, self.dim):
            raise InputError(
                Problem(
                    "feature-shape",
                    "features",
                    f"{features.shape[1]} windows of {features.shape[2]} numbers",
                    f"the tower was fitted on {self.windows} windows of {self.dim}",
                    "use features of the same regions and encoder",
                )
            )
        given = 0 if covariates is None else covariates.shape[1]
        if given != self.covariates:
            raise InputError(
                Problem(
                    "covariate-count",
                    "covariates",
                    f"{given} given",
                    f"the tower was fitted with {self.covariates}",
                    "give the covariates it was fitted with, coded alike"
                    if self.covariates
                    else "leave them out: this tower regresses nothing out",
                )
            )
        if covariates is not None:
            _check_finite(covariates, "covariates", "subjects", _FILL_IN)


def _check_fit_input(features: Tensor, covariates: Tensor | None) -> None:
    if features.shape[0] < 2:
        raise InputError(
            Problem(
                "too-few-subjects",
                "training split",
                f"{features.shape[0]} subjects",
                "at least 2 to fit a standardiser on",
            )
        )
    fix = "encode these subjects again, or leave them out"
    _check_finite(features, "features", "training rows", fix)
    if covariates is not None:
        _check_finite(covariates, "covariates", "training rows", _FILL_IN)
        _check_rank(covariates)


def _check_finite(values: Tensor, name: str, rows_of: str, fix: str) -> None:
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    if not bool(finite.all()):
        rows = torch.nonzero(~finite).flatten().tolist()
        raise InputError(
            Problem(
                f"{name}-not-finite",
                f"{name}, {rows_of} {rows[:10]}",
                f"{len(rows)} subjects with NaN or infinite {name}",
                "finite numbers",
                fix,
            )
        )


def _check_rank(covariates: Float[Tensor, "subject covariate"]) -> None:
    """Refuse covariates that leave no degree of freedom: they would explain noise as well."""
    subjects, count = covariates.shape
    centred = covariates.to(torch.float64) - covariates.to(torch.float64).mean(dim=0)
    rank = int(torch.linalg.matrix_rank(centred, rtol=_COLLINEAR)) if count else 0
    if rank and rank >= subjects - 1:
        raise InputError(
            Problem(
                "too-many-covariates",
                "covariates",
                f"{rank} independent ones and an intercept for {subjects} training subjects",
                f"at most {max(subjects - 2, 0)}: that many numbers fit any feature exactly, and "
                "nothing of it is left",
                "give fewer covariates, or merge rare categories such as small sites",
            )
        )


def _regress(covariates: Array, values: Array) -> tuple[Array, Array]:
    """Least-squares slopes of each dimension on centred covariates (least norm if collinear)."""
    mean, rest = covariates.mean(axis=0), values - values.mean(axis=0)
    return mean, np.linalg.lstsq(covariates - mean, rest, rcond=_COLLINEAR)[0]


def _scales(centred: Array, size: Array, scale: Scale) -> Array:
    """Multiplier of each window and dimension [W, D]; 0 where training subjects do not differ."""
    variance = (centred**2).mean(axis=0)
    variance = np.where(np.sqrt(variance) <= _ROUNDING * size, 0.0, variance)
    if scale == "window":
        unit = np.broadcast_to(variance.sum(axis=1, keepdims=True), variance.shape)
    elif scale == "dimension":
        unit = variance
    else:
        unit = np.ones_like(variance)
    with np.errstate(divide="ignore"):
        return np.where((variance > 0) & (unit > 0), 1 / np.sqrt(unit), 0.0)


def _reduce(scaled: Array, options: StandardiserOptions) -> tuple[Array | None, Array]:
    """PCA basis [F, k] (or None) and the multiplier of each component or dimension."""
    rows = len(scaled)
    if options.components is None:
        mean_variance = (scaled**2).mean(axis=0)
        mean_variance = mean_variance[mean_variance > 0].mean() if mean_variance.any() else 0.0
        unit = 1 / np.sqrt(mean_variance) if mean_variance > 0 else 0.0
        return None, np.full(scaled.shape[1], unit)
    directions, singular = principal_axes(scaled, options.components)
    variance = singular**2 / rows
    total = float((scaled**2).sum() / rows)
    real = singular > _RANK_TOLERANCE * (singular[0] if len(singular) else 0.0)
    cumulative = np.cumsum(variance) / total if total > 0 else np.ones(len(variance))
    enough = int(np.searchsorted(cumulative, options.explained_variance - 1e-12)) + 1
    kept = max(1, min(options.components, enough, int(real.sum())))
    variance, real = variance[:kept], real[:kept]
    shrinkage = options.whitening_shrinkage
    spread = (1 - shrinkage) * variance + shrinkage * variance.mean()
    with np.errstate(divide="ignore"):
        return directions[:, :kept], np.where(real, 1 / np.sqrt(spread), 0.0)


def principal_axes(centred: Array, components: int) -> tuple[Array, Array]:
    """Leading right singular vectors and singular values of a centred matrix.

    The sign of each vector is fixed: its largest entry in magnitude is positive. Matrices whose
    shorter side exceeds 4,096 are reduced by a seeded randomised SVD (Halko, Martinsson & Tropp
    2011, doi:10.1137/090771806), smaller ones exactly.

    Parameters
    ----------
    centred : ndarray [n, F] float64
    components : int

    Returns
    -------
    vectors : ndarray [F, k]
    singular_values : ndarray [k], descending; k = min(components, n, F)
    """
    components = min(components, *centred.shape)
    if min(centred.shape) > max(_EXACT_SVD_LIMIT, 2 * components):
        from sklearn.utils.extmath import randomized_svd

        _, singular, rows = randomized_svd(centred, components, n_iter=7, random_state=0)
    else:
        exact = torch.linalg.svd(torch.from_numpy(centred), full_matrices=False)
        singular, rows = exact.S.numpy(), exact.Vh.numpy()
    vectors = rows[:components].T
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(components)])
    return vectors * np.where(signs == 0, 1.0, signs), singular[:components]
