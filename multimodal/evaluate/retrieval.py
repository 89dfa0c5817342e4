"""How well a latent finds its partner among the candidates of a gallery.

Ties take mid-ranks: among candidates that score alike, every order is equally likely, and each
metric is its expectation over those orders. Rank percentiles are summed as integers (twice the
mid-rank) and divided once a gallery size, so that a control in which everybody ties gives 0.5 to
the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int32, Int64
from scipy.stats import rankdata

from encoders.errors import InputError, Problem

Direction = Literal["gene_to_brain", "brain_to_gene"]
DIRECTIONS: tuple[Direction, Direction] = ("gene_to_brain", "brain_to_gene")
RECALL_AT = (1, 5, 10)
MEAN_METRICS = (*(f"recall@{k}" for k in RECALL_AT), "mrr")


@dataclass(frozen=True)
class QueryRanks:
    """Where each query's partner came, pooled over galleries.

    Parameters
    ----------
    rows : ndarray [q] int64
        Row of each query in the cohort's arrays.
    ahead : ndarray [q] int64
        Candidates more similar to the query than its partner.
    tied : ndarray [q] int64
        Candidates exactly as similar as its partner, the partner included.
    size : ndarray [q] int64
        Candidates in the query's gallery.
    """

    rows: Int64[np.ndarray, " query"]
    ahead: Int64[np.ndarray, " query"]
    tied: Int64[np.ndarray, " query"]
    size: Int64[np.ndarray, " query"]

    @property
    def rank(self) -> Float64[np.ndarray, " query"]:
        """Mid-rank of each partner, 1 for the best."""
        return self.ahead + (self.tied + 1) / 2

    @property
    def doubled_credit(self) -> Int64[np.ndarray, " query"]:
        """Twice the number of candidates that came after the partner, mid-ranks for ties."""
        return 2 * self.size - (2 * self.ahead + self.tied + 1)


def similarity(
    gene: Float[np.ndarray, "member dim"], brain: Float[np.ndarray, "member dim"]
) -> Float64[np.ndarray, "member member"]:
    """Inner products of all gene latents with all brain latents, in float64.

    Distinct latents are multiplied once and the products copied: equal latents tie exactly, which
    a matrix product over repeated rows does not promise.

    Parameters
    ----------
    gene, brain : ndarray [m, d]
        Latents of the same m subjects in the same order.

    Returns
    -------
    ndarray [m, m] float64
        Gene latents along the rows.
    """
    gene_unique, gene_index = _distinct_rows(gene)
    brain_unique, brain_index = _distinct_rows(brain)
    products = gene_unique @ brain_unique.T
    expanded: np.ndarray = products[np.ix_(gene_index, brain_index)]
    return expanded


def query_ranks(
    scores: Float64[np.ndarray, "gene brain"],
    direction: Direction,
    rows: Int64[np.ndarray, " member"],
) -> QueryRanks:
    """Ranks of the partners (the diagonal of `scores`) for the queries of one direction."""
    ours = scores if direction == "gene_to_brain" else scores.T
    partner = np.diagonal(ours)[:, None]
    return QueryRanks(
        rows,
        (ours > partner).sum(axis=1),
        (ours == partner).sum(axis=1),
        np.full(len(rows), len(rows), dtype=np.int64),
    )


def pool_ranks(parts: Sequence[QueryRanks]) -> QueryRanks:
    """Join the queries of several galleries."""
    return QueryRanks(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("rows", "ahead", "tied", "size")
        )
    )


def doubled_credits(
    scores: Float64[np.ndarray, "gene brain"],
) -> Int32[np.ndarray, "gene brain"]:
    """Twice the credit each pairing would earn, summed over both directions.

    Entry ``[i, j]`` is what it adds to the statistic to call brain j the partner of gene i: the
    number of candidates that j leaves behind for query i, plus the number that i leaves behind for
    query j, mid-ranks for ties, times two.
    """
    size = len(scores)
    doubled = sum(
        (2 * rankdata(-scores, method="average", axis=axis)).astype(np.int32) for axis in (0, 1)
    )
    credits: np.ndarray = 4 * size - np.asarray(doubled)
    return credits


def mean_percentile(
    doubled_credit: Int64[np.ndarray, "*batch part"], size: Int64[np.ndarray, " part"], terms: int
) -> Float64[np.ndarray, "*batch"]:
    """Mean rank percentile, (size - rank) / (size - 1), from integer credits.

    Parameters
    ----------
    doubled_credit : ndarray [..., p] int64
        Twice the credit of each part: a query, or the sum over the queries of a gallery.
    size : ndarray [p] int64
        Gallery size of each part.
    terms : int
        Number of ranks in all parts together.
    """
    total = np.zeros(doubled_credit.shape[:-1])
    for n in np.unique(size):
        total += doubled_credit[..., size == n].sum(axis=-1) / (2 * (n - 1))
    return total / terms


def per_query_metrics(ranks: QueryRanks) -> dict[str, Float64[np.ndarray, " query"]]:
    """Each query's expected recall@k and reciprocal rank over all orders of its ties."""
    harmonic = _harmonic_numbers(int(ranks.size.max()))
    values = {f"recall@{k}": np.clip((k - ranks.ahead) / ranks.tied, 0.0, 1.0) for k in RECALL_AT}
    reciprocal = harmonic[ranks.ahead + ranks.tied] - harmonic[ranks.ahead]
    values["mrr"] = reciprocal / ranks.tied
    return values


def retrieval_metrics(ranks: QueryRanks) -> dict[str, float]:
    """Recall@1/5/10, mean rank percentile, median rank and mean reciprocal rank.

    Parameters
    ----------
    ranks : QueryRanks
        Queries of one direction, pooled over galleries of at least two members.

    Returns
    -------
    dict of str to float
        ``mean_rank_percentile`` is 1 for a perfect retrieval and 0.5 by chance.
    """
    metrics = {name: float(values.mean()) for name, values in per_query_metrics(ranks).items()}
    metrics["mean_rank_percentile"] = float(
        mean_percentile(ranks.doubled_credit, ranks.size, len(ranks.size))
    )
    metrics["median_rank"] = float(np.median(ranks.rank))
    return metrics


def chance_metrics(sizes: Sequence[int]) -> dict[str, float]:
    """What random guessing gives on average, for galleries of these sizes pooled.

    A partner's rank is then uniform over 1..m in a gallery of m, each gallery asking m queries. The
    chance level of the median rank is the median of that distribution.

    Parameters
    ----------
    sizes : sequence of int
        Number of members of each gallery.
    """
    total = sum(sizes)
    harmonic = _harmonic_numbers(max(sizes))
    chance = {f"recall@{k}": float(sum(min(k, n) for n in sizes) / total) for k in RECALL_AT}
    chance["mrr"] = float(sum(harmonic[n] for n in sizes) / total)
    chance["mean_rank_percentile"] = 0.5
    chance["median_rank"] = float(np.median(np.concatenate([np.arange(1, n + 1) for n in sizes])))
    return chance


def _distinct_rows(
    latents: Float[np.ndarray, "member dim"],
) -> tuple[Float64[np.ndarray, "distinct dim"], Int64[np.ndarray, " member"]]:
    # Adding zero turns -0.0 into 0.0, whose bytes would differ though the numbers are equal.
    values = np.ascontiguousarray(latents, dtype=np.float64) + 0.0
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        raise InputError(
            Problem(
                "latent-not-finite",
                "latents",
                f"{bad} of {len(values)} latents hold NaN or infinity",
                "finite numbers",
                "look for a diverged training run or features with NaN",
            )
        )
    seen: dict[bytes, int] = {}
    index = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in values], dtype=np.int64)
    _, first = np.unique(index, return_index=True)
    return values[first], index


def _harmonic_numbers(largest: int) -> Float64[np.ndarray, " count"]:
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, largest + 1))])
