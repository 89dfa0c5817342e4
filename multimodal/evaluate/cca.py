"""Ridge CCA in closed form: the linear baseline, and the fast aligner of the null replicates."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from multimodal.evaluate.crossfit import FitAndEmbed


@dataclass(frozen=True)
class RidgeCca:
    """Paired directions of two sets of variables (Vinod 1976, Journal of Econometrics 4).

    Parameters
    ----------
    gene_mean, brain_mean : ndarray [p], [q] float64
        Training means.
    gene_weights, brain_weights : ndarray [p, k], [q, k] float64
        Canonical weights.
    correlations : ndarray [k] float64
        Regularised canonical correlations, descending.
    """

    gene_mean: Float64[np.ndarray, " gene"]
    brain_mean: Float64[np.ndarray, " brain"]
    gene_weights: Float64[np.ndarray, "gene dim"]
    brain_weights: Float64[np.ndarray, "brain dim"]
    correlations: Float64[np.ndarray, " dim"]

    def embed_genes(
        self, values: Float[np.ndarray, "subject gene"]
    ) -> Float64[np.ndarray, "subject dim"]:
        """Unit-length canonical variates, each scaled by the root of its correlation."""
        return _unit((values - self.gene_mean) @ self.gene_weights * np.sqrt(self.correlations))

    def embed_brains(
        self, values: Float[np.ndarray, "subject brain"]
    ) -> Float64[np.ndarray, "subject dim"]:
        """The same of the brain side: inner products weigh each pair by its correlation."""
        return _unit((values - self.brain_mean) @ self.brain_weights * np.sqrt(self.correlations))


def fit_ridge_cca(
    gene: Float[np.ndarray, "subject gene"],
    brain: Float[np.ndarray, "subject brain"],
    *,
    dims: int = 16,
    ridge: float = 1.0,
) -> RidgeCca:
    """Fit the canonical directions.

    Works through the thin SVDs of both sides, so that a side may have far more variables than
    there are subjects (connectivity has tens of thousands).

    Parameters
    ----------
    gene, brain : ndarray [n, p], [n, q]
        Training features of the same n subjects.
    dims : int
        Number k of directions; fewer when the data have fewer.
    ridge : float
        Penalty on each side, as a multiple of its mean non-zero variance; 0 for plain CCA.
    """
    gene_mean = np.asarray(gene, dtype=np.float64).mean(axis=0)
    brain_mean = np.asarray(brain, dtype=np.float64).mean(axis=0)
    gene_scores, gene_map = _shrunk_scores(gene - gene_mean, ridge)
    brain_scores, brain_map = _shrunk_scores(brain - brain_mean, ridge)
    left, correlations, right = np.linalg.svd(gene_scores.T @ brain_scores, full_matrices=False)
    k = min(dims, len(correlations))
    return RidgeCca(
        gene_mean,
        brain_mean,
        gene_map @ left[:, :k],
        brain_map @ right[:k].T,
        correlations[:k],
    )


def cca_fit_and_embed(
    gene: Float[np.ndarray, "subject gene"],
    brain: Float[np.ndarray, "subject brain"],
    *,
    dims: int = 16,
    ridge: float = 1.0,
) -> FitAndEmbed:
    """Wrap `fit_ridge_cca` for `crossfit.cross_fit`.

    Parameters
    ----------
    gene, brain : ndarray [n, p], [n, q]
        Features of all subjects, one row a subject.
    dims, ridge
        As in `fit_ridge_cca`.
    """

    def fit_and_embed(
        train_rows: Int64[np.ndarray, " train"], test_rows: Int64[np.ndarray, " test"], fold: int
    ) -> tuple[np.ndarray, np.ndarray]:
        model = fit_ridge_cca(gene[train_rows], brain[train_rows], dims=dims, ridge=ridge)
        of_gene = _padded(model.embed_genes(gene[test_rows]), dims)
        return of_gene, _padded(model.embed_brains(brain[test_rows]), dims)

    return fit_and_embed


def _shrunk_scores(
    centred: Float64[np.ndarray, "subject variable"], ridge: float
) -> tuple[Float64[np.ndarray, "subject rank"], Float64[np.ndarray, "variable rank"]]:
    """Ridge-whitened scores, and the map from variables to them."""
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    keep = singular > singular.max(initial=0.0) * max(centred.shape) * np.finfo(float).eps
    left, singular, right = left[:, keep], singular[keep], right[keep]
    penalty = ridge * float((singular**2).mean()) if keep.any() else 0.0
    whitened = np.sqrt(singular**2 + penalty)
    return left * (singular / whitened), right.T / whitened


def _unit(values: Float64[np.ndarray, "subject dim"]) -> Float64[np.ndarray, "subject dim"]:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    # A subject without any signal keeps the zero vector, which ties with everybody.
    unit: np.ndarray = values / np.where(length > 0, length, 1.0)
    return unit


def _padded(
    values: Float64[np.ndarray, "subject dim"], dims: int
) -> Float64[np.ndarray, "subject wanted"]:
    """Zero columns up to `dims`: folds of different rank then have latents of one width."""
    return np.pad(values, ((0, 0), (0, dims - values.shape[1])))
