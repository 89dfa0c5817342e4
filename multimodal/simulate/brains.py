"""Network connectivity of every participant: what the genome, the family and the site make of it.

Correlation matrices are parametrised by the off-diagonal elements of their matrix logarithm,
which take any value (Archakov and Hansen, Econometrica 89, 2021), so that effects add up linearly
and the result is always positive definite.
"""

from dataclasses import dataclass

import numpy as np

from multimodal.simulate.options import SimulationOptions
from multimodal.simulate.people import People
from multimodal.simulate.streams import stream

MAX_STEPS = 200


@dataclass(frozen=True)
class Brains:
    """Network connectivity, in the order of `People`.

    Parameters
    ----------
    dimensions : ndarray [n, K] float64
        The heritable dimensions, of unit variance within ancestry.
    log_correlation : ndarray [n, pairs] float64
        Off-diagonal elements of the logarithm of the network correlation matrix, site included.
    correlation : ndarray [n, networks, networks] float64
        Network correlation matrix.
    run_sd : float
        Standard deviation between runs of each element of `log_correlation`.
    scale : float
        Elements of `log_correlation` per standard deviation between subjects.
    """

    dimensions: np.ndarray
    log_correlation: np.ndarray
    correlation: np.ndarray
    run_sd: float
    scale: float


def draw_brains(
    options: SimulationOptions, people: People, scores: np.ndarray, scale: float | None = None
) -> Brains:
    """Draw everybody's network connectivity.

    Parameters
    ----------
    options : SimulationOptions
    people : People
    scores : ndarray [n, K] float64
        Causal scores; in `null` and `confounded` a family-shared score of no variant's making
        takes their place, so that relatives' brains are as alike as in `signal`.
    scale : float, optional
        The first cohort's, for new people; found from these people by default.
    """
    rng = stream(options.seed, "brains")
    k, pairs = options.causal_dimensions, options.network_pairs()
    base = rng.uniform(-0.1, 0.3, pairs)
    directions = balanced_directions(rng, pairs, k)
    if options.people_seed is not None:
        rng = options.people_stream("brains")
    inherited = family_normal(rng, people, people.relatedness, k)
    if options.world == "signal":
        inherited = scores
    sharing = np.where(people.relatedness > 0, options.shared_environment, 0.0)
    environment = family_normal(rng, people, sharing, k)
    h2 = options.heritability
    dimensions = np.sqrt(h2) * inherited + np.sqrt(1.0 - h2) * environment
    own = family_normal(rng, people, sharing, pairs)
    share = options.causal_share
    deviation = np.sqrt(share) * dimensions @ directions.T + np.sqrt(1.0 - share) * own
    if scale is None:
        scale = _scale_to_sd(options, base, deviation)
    shift = scale * _site_shift(options)[people.site]
    log_correlation = base + scale * deviation + shift
    return Brains(
        dimensions=dimensions,
        log_correlation=log_correlation,
        correlation=correlation_from_log(log_correlation, options.networks),
        run_sd=options.run_sd * scale,
        scale=scale,
    )


def family_normal(
    rng: np.random.Generator, people: People, sharing: np.ndarray, columns: int
) -> np.ndarray:
    """Draw standard normals [n, columns], correlated by `sharing` [n] within families."""
    common = rng.standard_normal((len(people.kind), columns))[people.family]
    own = rng.standard_normal((len(people), columns))
    return np.sqrt(sharing)[:, None] * common + np.sqrt(1.0 - sharing)[:, None] * own


def balanced_directions(rng: np.random.Generator, pairs: int, k: int) -> np.ndarray:
    """Draw [pairs, k] nearly orthogonal columns whose rows have unit length.

    Every network pair then varies equally, and every direction weighs the same.
    """
    directions = rng.standard_normal((pairs, k))
    for _ in range(MAX_STEPS):
        u, _, vt = np.linalg.svd(directions, full_matrices=False)
        directions = u @ vt
        lengths = np.linalg.norm(directions, axis=1, keepdims=True)
        directions = directions / np.maximum(lengths, 1e-9)
    return directions


def correlation_from_log(log_correlation: np.ndarray, networks: int) -> np.ndarray:
    """Return the correlation matrices whose logarithm has the given off-diagonal elements.

    Parameters
    ----------
    log_correlation : ndarray [n, pairs] float64
        In the order of ``numpy.triu_indices(networks, 1)``.
    networks : int

    Returns
    -------
    ndarray [n, networks, networks] float64
        Positive definite, of unit diagonal.

    Notes
    -----
    The diagonal is found by the contraction ``d <- d - log diag(exp(A))`` of Archakov and Hansen.
    """
    log_matrix = np.zeros((len(log_correlation), networks, networks))
    rows, columns = np.triu_indices(networks, 1)
    log_matrix[:, rows, columns] = log_correlation
    log_matrix[:, columns, rows] = log_correlation
    diagonal = np.arange(networks)
    result = _expm(log_matrix)
    for _ in range(MAX_STEPS):
        excess = np.log(result[:, diagonal, diagonal])
        if np.abs(excess).max() < 1e-12:
            break
        log_matrix[:, diagonal, diagonal] -= excess
        result = _expm(log_matrix)
    spread = np.sqrt(result[:, diagonal, diagonal])
    return result / (spread[:, :, None] * spread[:, None, :])


def _expm(symmetric: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.exp(values)[:, None, :]) @ vectors.transpose(0, 2, 1)


def _scale_to_sd(options: SimulationOptions, base: np.ndarray, deviation: np.ndarray) -> float:
    """Find the scale of `deviation` at which correlations have the between-subject SD wanted."""
    rows, columns = np.triu_indices(options.networks, 1)
    scale = options.correlation_sd
    for _ in range(8):
        matrices = correlation_from_log(base + scale * deviation, options.networks)
        spread = float(matrices[:, rows, columns].std(axis=0).mean())
        scale *= options.correlation_sd / spread
    return scale


def _site_shift(options: SimulationOptions) -> np.ndarray:
    """Shift of each site's connectivity [sites, pairs], in between-subject standard deviations."""
    rng = stream(options.seed, "sites")
    confounded = options.world == "confounded"
    size = options.confounded_site_shift_sd if confounded else options.site_shift_sd
    signs = rng.choice([-1.0, 1.0], size=(options.sites, options.network_pairs()))
    if options.sites == 2:
        signs[1] = -signs[0]
    return np.asarray(0.5 * size * signs)
