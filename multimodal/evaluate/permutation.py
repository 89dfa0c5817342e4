"""Is the pairing of genomes with brains better than chance? One permutation test.

The statistic is the average over both directions of the mean rank percentile. Under the null the
pairing within a gallery is arbitrary, so its members' pairs are permuted; ranks then are looked up
in a table of credits that is computed once.

Cross-fitting needs one correction. Each fold is scored by a model that was trained on the other
folds, and these were trained on it: the chance likeness of folds f and g enters the score of f
through its model and the score of g through its own. Permuting one fold at a time, the models held
fixed, counts the two as independent, and its null is too narrow. To first order in each fold's
cross-covariance the variance of the pooled score grows by ``1 + rho``, where rho, at most one, is
`fold_coupling`; the null is stretched around its mean by the square root of that. Without the
correction a nominal 5% test rejects about 8 to 12% of true nulls (``tests/evaluate`` holds both
sides).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from multimodal.evaluate.retrieval import mean_percentile

PERMUTATIONS = 9_999
# Statistics are sums of rationals; equal ones may differ in the last bits.
TOLERANCE = 1e-12
_CHUNK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class PermutationTest:
    """Outcome of `permutation_test`.

    Parameters
    ----------
    statistic : float
        Average over both directions of the mean rank percentile; 0.5 by chance, 1 at best.
    p : float
        One-sided, ``(1 + b) / (1 + B)``, b counting the permutations that do at least as well.
    null : ndarray [B] float64
        The statistic under each permutation, stretched by `inflation`.
    inflation : float
        Factor on the null's spread: 1 for one held-out split.
    """

    statistic: float
    p: float
    null: Float64[np.ndarray, " permutation"]
    inflation: float


def permutation_test(
    credits: Iterable[Int[np.ndarray, "gene brain"]],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    inflation: float = 1.0,
) -> PermutationTest:
    """Permute the pairings within each gallery.

    Parameters
    ----------
    credits : iterable of ndarray [m, m] int
        For each gallery of at least two members, `retrieval.doubled_credits`; consumed one by one,
        so that a generator keeps only one table in memory.
    permutations : int
        B, the number of permutations.
    seed : int
        Each gallery draws from a stream of its own.
    inflation : float
        Factor on the null's spread, from the square root of ``1 + fold_coupling``.

    Raises
    ------
    ValueError
        No gallery, or one with fewer than two members.
    """
    observed: dict[int, int] = {}
    permuted: dict[int, np.ndarray] = {}
    queries = 0
    for number, table in enumerate(credits):
        size = len(table)
        if size < 2:
            raise ValueError("a permutation test needs galleries of at least two members")
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        # Integer sums a gallery size, divided once at the end, keep tied statistics equal.
        observed[size] = observed.get(size, 0) + int(np.trace(table))
        permuted[size] = permuted.get(size, 0) + _permuted_sums(table, permutations, rng)
        queries += size
    if not observed:
        raise ValueError("a permutation test needs at least one gallery")
    sizes = np.array(sorted(observed), dtype=np.int64)
    statistic = float(
        mean_percentile(np.array([observed[size] for size in sizes]), sizes, 2 * queries)
    )
    sums = np.stack([permuted[size] for size in sizes], axis=1)
    null = 0.5 + inflation * (mean_percentile(sums, sizes, 2 * queries) - 0.5)
    as_good = int((null >= statistic - TOLERANCE).sum())
    return PermutationTest(statistic, (1 + as_good) / (1 + permutations), null, inflation)


def fold_coupling(
    component_sizes: Int[np.ndarray, " component"],
    tested: Bool[np.ndarray, " component"],
    gallery_sizes: Sequence[int] = (),
) -> float:
    """How much the folds' scores share through one another's models.

    Squared correlation of what a fold teaches other models (all its members) with what it is
    tested on (one member of some components). It depends on how alike relatives are in genes and
    brains; of the two extremes, not at all and entirely, the larger bounds all between.

    Parameters
    ----------
    component_sizes : ndarray [c] int
        Members of each kinship component in the folds.
    tested : ndarray [c] bool
        Whether one of them is in a gallery.
    gallery_sizes : sequence of int
        Members of each gallery. Permuting within a gallery of m looks at m - 1 degrees of freedom:
        how its mean genome goes with its mean brain is taught to other folds, but not tested.
        Without it this is left out of account, as for large galleries it may be.

    Returns
    -------
    float
        Between 0 and 1; 1 when nobody has relatives and everybody is tested.
    """
    galleries = int(tested.sum())
    if not galleries:
        return 0.0
    unlike = galleries / float(component_sizes.sum())
    alike = float(component_sizes[tested].sum()) ** 2 / (
        galleries * float((component_sizes.astype(np.float64) ** 2).sum())
    )
    members = sum(gallery_sizes)
    looked_at = (members - len(gallery_sizes)) / members if members else 1.0
    return max(unlike, alike) * looked_at


def exact_null_sd(credits: Sequence[Int[np.ndarray, "gene brain"]]) -> float:
    """Standard deviation of the statistic over all pairings, in closed form, without inflation.

    The sum of a random permutation's entries has variance ``sum(d**2) / (m - 1)``, d being the
    doubly centred table (Hoeffding 1951, Annals of Mathematical Statistics 22).
    """
    terms = 2 * sum(len(table) for table in credits)
    variance = 0.0
    for table in credits:
        m = len(table)
        centred = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        variance += float((centred**2).sum()) / (m - 1) / (2 * (m - 1)) ** 2
    return float(np.sqrt(variance)) / terms


def histogram(
    null: Float64[np.ndarray, " permutation"], bins: int = 60
) -> dict[str, list[float] | list[int]]:
    """Counts of the null's values in equal bins: what a report needs to draw it.

    Returns
    -------
    dict
        ``edges``, ``bins + 1`` numbers, and ``counts``.
    """
    counts, edges = np.histogram(null, bins=bins)
    return {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}


def _permuted_sums(
    table: Int[np.ndarray, "gene brain"], permutations: int, rng: np.random.Generator
) -> Int64[np.ndarray, " permutation"]:
    m = len(table)
    members = np.arange(m)
    sums = np.empty(permutations, dtype=np.int64)
    step = max(1, _CHUNK_ENTRIES // m)
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        partner = rng.permuted(np.broadcast_to(members, (count, m)), axis=1)
        sums[start : start + count] = table[members, partner].sum(axis=1, dtype=np.int64)
    return sums
