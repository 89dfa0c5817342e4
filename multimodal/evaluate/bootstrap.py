"""Intervals for the retrieval metrics: a bootstrap over families.

Whole kinship components are drawn with replacement, because relatives are not independent. The
ranks stay as they were found: the intervals say how far the metrics would move with other families
asking the same trained model in the same galleries, not with another training set.
"""

import numpy as np
from jaxtyping import Float64, Int, Int64

from multimodal.evaluate.retrieval import QueryRanks, per_query_metrics

REPLICATES = 2_000
_CHUNK_ENTRIES = 4_000_000


def bootstrap_intervals(
    ranks: QueryRanks,
    components: Int[np.ndarray, " query"],
    *,
    replicates: int = REPLICATES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Percentile intervals of all retrieval metrics (Efron 1979, Annals of Statistics 7).

    Parameters
    ----------
    ranks : QueryRanks
        The q queries of one direction.
    components : ndarray [q] int
        Kinship component of each query.
    replicates : int
        Number of bootstrap samples.
    level : float
        Coverage aimed at, between 0 and 1.
    seed : int

    Returns
    -------
    dict of str to [low, high]
    """
    labels, component_of = np.unique(components, return_inverse=True)
    by_rank = np.argsort(ranks.rank, kind="stable")
    sorted_rank = ranks.rank[by_rank]
    values = per_query_metrics(ranks)
    values["mean_rank_percentile"] = ranks.doubled_credit / (2 * (ranks.size - 1))
    table = np.stack([values[name] for name in values], axis=1)
    rng = np.random.default_rng(seed)
    means, medians = [], []
    for count in _chunks(replicates, len(component_of)):
        draws = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=count)
        times = draws[:, component_of]
        means.append(times @ table / times.sum(axis=1, keepdims=True))
        medians.append(_weighted_medians(sorted_rank, times[:, by_rank]))
    samples = dict(zip(values, np.concatenate(means).T, strict=True))
    samples["median_rank"] = np.concatenate(medians)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: [float(bound) for bound in np.quantile(sample, tails)]
        for name, sample in samples.items()
    }


def _chunks(replicates: int, queries: int) -> list[int]:
    step = max(1, _CHUNK_ENTRIES // queries)
    return [min(step, replicates - start) for start in range(0, replicates, step)]


def _weighted_medians(
    sorted_values: Float64[np.ndarray, " query"], times: Int64[np.ndarray, "replicate query"]
) -> Float64[np.ndarray, " replicate"]:
    """Median of each replicate, a value being repeated as often as `times` says."""
    upto = times.cumsum(axis=1)
    total = upto[:, -1]
    low = (upto > ((total - 1) // 2)[:, None]).argmax(axis=1)
    high = (upto > (total // 2)[:, None]).argmax(axis=1)
    medians: np.ndarray = (sorted_values[low] + sorted_values[high]) / 2
    return medians
