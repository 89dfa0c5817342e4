"""Before training: which effect would this cohort detect, and how many subjects would one need?

Model: on held-out subjects the trained towers give k aligned dimensions, in each of which the gene
and the brain latent correlate by r; everything else is noise. The expected mean rank percentile is
then the probability that a subject's own brain lies nearer than a random other's, whatever the
gallery size, found by simulation. The null's spread follows from the gallery sizes (the exact
permutation variance, averaged over simulated galleries) and is widened for cross-fitting.
Power is that of a one-sided normal test.

The effect meant is the one that remains *after* training, on unseen subjects. Learning it costs
subjects too: the figures are the fewest one could do with, not a promise.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import norm

from encoders.errors import InputError, Problem
from multimodal.evaluate.galleries import SMALLEST_GALLERY, SMALLEST_STRATUM, raw_galleries
from multimodal.evaluate.permutation import exact_null_sd, fold_coupling
from multimodal.evaluate.retrieval import doubled_credits
from multimodal.evaluate.summary import Evaluated

EFFECTS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_GRID = np.linspace(0.0, 0.99, 67)
_ANCHOR_SIZES = (2, 3, 4, 5, 7, 10, 15, 25, 50, 100, 200)
_SEED = 20_240
_MOST_GROWTH = 1e6


@dataclass(frozen=True)
class PowerOptions:
    """What a power calculation assumes.

    Parameters
    ----------
    alpha : float
        One-sided level of the test.
    power : float
        Wanted chance of detecting the effect.
    dims : int
        Aligned dimensions k; about four is what functional networks with a common genetic
        background would give.
    effects : tuple of float
        Correlations r per dimension for which the subjects needed are listed.
    """

    alpha: float = 0.05
    power: float = 0.8
    dims: int = 4
    effects: tuple[float, ...] = EFFECTS

    def __post_init__(self) -> None:
        ranges = {"alpha": (self.alpha,), "power": (self.power,), "effects": self.effects}
        problems = [
            Problem(
                "power-option",
                f"evaluate.{name}",
                f"{value:g}",
                "a number between 0 and 1, both excluded",
            )
            for name, values in ranges.items()
            for value in values
            if not 0 < value < 1
        ]
        if self.dims < 1:
            problems.append(
                Problem("power-option", "evaluate.dims", f"{self.dims}", "at least one dimension")
            )
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class GalleryLayout:
    """Sizes that decide the spread of the null.

    Parameters
    ----------
    cells : ndarray [c] float64
        Unrelated members of each gallery-to-be (fold, or stratum within fold), small ones included.
    smallest : int
        Cells with fewer members are dropped.
    components : int
        Kinship components in all folds.
    subjects : int
        Subjects of the cohort, relatives and untested ones included.
    coupling : float
        `permutation.fold_coupling` when all components are tested; 0 for a held-out split.
    """

    cells: Float64[np.ndarray, " cell"]
    smallest: int
    components: int
    subjects: int
    coupling: float

    def sizes(self, growth: float = 1.0) -> Int64[np.ndarray, " gallery"]:
        """Gallery sizes of a cohort `growth` times as large and otherwise alike."""
        sizes: np.ndarray = np.rint(self.cells * growth).astype(np.int64)
        return sizes[sizes >= self.smallest]

    def null_sd(self, dims: int, growth: float = 1.0) -> float:
        """Spread of the statistic under the null; infinite without galleries."""
        sizes = self.sizes(growth)
        if not len(sizes):
            return float("inf")
        tested = float(sizes.sum())
        distinct, counts = np.unique(sizes, return_counts=True)
        # A gallery of m weighs its own mean by m.
        variance = sum(
            count * (m * gallery_sd(int(m), dims)) ** 2
            for m, count in zip(distinct, counts, strict=True)
        )
        share = min(1.0, tested / (self.components * growth)) * (tested - len(sizes)) / tested
        return float(np.sqrt(variance * (1 + self.coupling * share))) / tested


def layouts(
    who: Evaluated, *, smallest_stratum: int = SMALLEST_STRATUM
) -> dict[str, GalleryLayout]:
    """Raw and matched layouts of a cohort, as the evaluation would lay them out.

    Parameters
    ----------
    who : Evaluated
        Identifiers, folds, kinship components and strata; no latents.
    smallest_stratum : int
        Strata with fewer unrelated members in a fold are dropped.
    """
    components, folds = np.asarray(who.components), np.asarray(who.folds)
    galleries = raw_galleries(components, folds, ids=who.ids).galleries
    members = np.concatenate([gallery.rows for gallery in galleries])
    strata = np.asarray(who.strata)[members]
    _, by_fold = np.unique(folds[members], return_counts=True)
    _, fold_code = np.unique(folds[members], return_inverse=True)
    _, stratum_code = np.unique(strata, return_inverse=True)
    _, by_stratum = np.unique(np.stack([fold_code, stratum_code]), axis=1, return_counts=True)
    _, relatives = np.unique(components[folds >= 0], return_counts=True)
    coupling = 0.0
    if who.method == "crossfit":
        coupling = fold_coupling(relatives, np.ones(len(relatives), dtype=bool))
    return {
        kind: GalleryLayout(
            cells.astype(np.float64), smallest, len(relatives), len(who.ids), coupling
        )
        for kind, cells, smallest in (
            ("raw", by_fold, SMALLEST_GALLERY),
            ("matched", by_stratum, max(smallest_stratum, SMALLEST_GALLERY)),
        )
    }


def plan(who: Evaluated, *, options: PowerOptions | None = None) -> dict[str, Any]:
    """Detectable effect of a cohort, and the subjects that given effects would need.

    Parameters
    ----------
    who : Evaluated
    options : PowerOptions, optional

    Returns
    -------
    dict
        Plain values: ``options``, ``subjects``, and for ``raw`` and ``matched``: ``tested``,
        ``galleries``, ``null_sd``, ``detectable`` (``mean_rank_percentile``, ``correlation``,
        ``variance_explained``; None where no effect could be detected) and ``needed``: for each
        effect its correlation, variance explained, mean rank percentile, the power this cohort has
        and the subjects wanted (a cohort of the same make-up).

    Raises
    ------
    InputError
        A fold has fewer than two unrelated subjects.
    """
    options = options or PowerOptions()
    result: dict[str, Any] = {"subjects": len(who.ids), "options": asdict(options)}
    result["options"]["effects"] = list(options.effects)
    for kind, layout in layouts(who).items():
        result[kind] = _plan_one(layout, options)
    return result


def power_of(correlation: float, layout: GalleryLayout, options: PowerOptions) -> float:
    """Chance of a p of at most alpha when each of the k dimensions correlates by `correlation`."""
    gain = expected_percentile(correlation, options.dims) - 0.5
    threshold = norm.isf(options.alpha)
    return float(norm.sf(threshold - gain / layout.null_sd(options.dims)))


def subjects_needed(correlation: float, layout: GalleryLayout, options: PowerOptions) -> int | None:
    """Fewest subjects, in a cohort of the same make-up, that reach the wanted power.

    None when the effect is nil.
    """
    gain = expected_percentile(correlation, options.dims) - 0.5
    wanted_sd = gain / _separation(options)
    if gain <= 0 or layout.null_sd(options.dims, _MOST_GROWTH) > wanted_sd:
        return None
    low, high = np.log(2.0 / layout.subjects), np.log(_MOST_GROWTH)
    for _ in range(60):
        middle = (low + high) / 2
        if layout.null_sd(options.dims, float(np.exp(middle))) > wanted_sd:
            low = middle
        else:
            high = middle
    return int(np.ceil(np.exp(high) * layout.subjects))


def expected_percentile(correlation: float, dims: int) -> float:
    """Mean rank percentile expected when each of `dims` dimensions correlates by `correlation`.

    Equals the probability that the partner beats one random other candidate.
    """
    return float(np.interp(correlation, _GRID, _percentile_curve(dims)))


def gallery_sd(size: int, dims: int) -> float:
    """Permutation SD of the statistic in one gallery of `size`, averaged over random latents."""
    # Hubs and the two directions' correlation change the spread by a factor that varies little
    # with the size and settles for large galleries.
    factor = np.interp(np.log(size), np.log(_ANCHOR_SIZES), _spread_factors(dims))
    return float(factor) * _independent_sd(size)


@lru_cache(maxsize=16)
def _spread_factors(dims: int) -> tuple[float, ...]:
    rng = np.random.default_rng([_SEED, dims])
    factors = []
    for size in _ANCHOR_SIZES:
        variances = []
        for _ in range(max(4, 1_500 // size)):
            gene, brain = (_unit(rng.standard_normal((size, dims))) for _ in range(2))
            variances.append(exact_null_sd([doubled_credits(gene @ brain.T)]) ** 2)
        factors.append(float(np.sqrt(np.mean(variances))) / _independent_sd(size))
    return tuple(factors)


def format_plan(result: dict[str, Any]) -> str:
    """Write the outcome of `plan` as plain-text tables."""
    options = result["options"]
    lines = [
        f"Power at alpha {options['alpha']:g} (one-sided), wanted power {options['power']:g}, "
        f"{options['dims']} aligned dimensions; {result['subjects']:,} subjects.",
    ]
    for kind, title in (("raw", "Raw galleries"), ("matched", "Matched galleries")):
        lines += ["", *_format_one(result[kind], title)]
    lines += [
        "",
        "r is the correlation of the gene with the brain latent in each aligned dimension, on",
        "subjects the model has not seen; r squared is the variance explained. Training has to",
        "find that alignment first, so these are the fewest subjects one could do with. For",
        "orientation: about 15% of the variance of functional connectivity is genetic, and r",
        "squared cannot exceed the heritability of what the brain latent measures.",
    ]
    return "\n".join(lines)


def _plan_one(layout: GalleryLayout, options: PowerOptions) -> dict[str, Any]:
    sizes = layout.sizes()
    sd = layout.null_sd(options.dims)
    return {
        "tested": int(sizes.sum()),
        "galleries": len(sizes),
        "smallest": int(sizes.min()) if len(sizes) else 0,
        "largest": int(sizes.max()) if len(sizes) else 0,
        "null_sd": sd if np.isfinite(sd) else None,
        "detectable": _detectable(sd, options),
        "needed": [
            {
                "correlation": r,
                "variance_explained": r * r,
                "mean_rank_percentile": expected_percentile(r, options.dims),
                "power": power_of(r, layout, options),
                "subjects": subjects_needed(r, layout, options),
            }
            for r in options.effects
        ],
    }


def _detectable(sd: float, options: PowerOptions) -> dict[str, float] | None:
    curve = _percentile_curve(options.dims)
    wanted = 0.5 + _separation(options) * sd
    if not wanted <= curve[-1]:
        return None
    correlation = float(np.interp(wanted, curve, _GRID))
    return {
        "mean_rank_percentile": wanted,
        "correlation": correlation,
        "variance_explained": correlation**2,
    }


def _format_one(part: dict[str, Any], title: str) -> list[str]:
    if not part["galleries"]:
        return [f"{title}: none large enough; match on fewer covariates or test more subjects."]
    lines = [
        f"{title}: {part['tested']:,} unrelated subjects tested in {part['galleries']} "
        f"galleries of {part['smallest']:,} to {part['largest']:,}; null SD {part['null_sd']:.4f}."
    ]
    found = part["detectable"]
    lines.append(
        f"  detects a mean rank percentile of {found['mean_rank_percentile']:.3f}"
        f" (r = {found['correlation']:.2f}, {100 * found['variance_explained']:.1f}% of variance)"
        if found
        else "  detects no effect, not even a perfect alignment"
    )
    lines.append(f"  {'r':>5} {'variance':>9} {'percentile':>11} {'power here':>11} {'needs':>12}")
    for row in part["needed"]:
        needs = "-" if row["subjects"] is None else f"{row['subjects']:,}"
        lines.append(
            f"  {row['correlation']:>5.2f} {100 * row['variance_explained']:>8.1f}% "
            f"{row['mean_rank_percentile']:>11.3f} {row['power']:>11.2f} {needs:>12}"
        )
    return lines


def _separation(options: PowerOptions) -> float:
    return float(norm.isf(options.alpha) + norm.ppf(options.power))


def _independent_sd(size: int) -> float:
    """SD of the mean of `size` rank percentiles, each uniform over its `size` values."""
    return float(np.sqrt((size + 1) / (12 * (size - 1) * size)))


@lru_cache(maxsize=16)
def _percentile_curve(dims: int) -> Float64[np.ndarray, " correlation"]:
    """Expected percentile along `_GRID`, non-decreasing, exactly 0.5 at 0."""
    rng = np.random.default_rng([_SEED, dims])
    gene, noise, other = (rng.standard_normal((20_000, dims)) for _ in range(3))
    query = _unit(gene)
    against = (query * _unit(other)).sum(axis=1)
    curve = np.empty(len(_GRID))
    for place, r in enumerate(_GRID):
        # The noise and its mirror image halve the error and centre the curve at r = 0.
        own = [_unit(r * gene + np.sqrt(1 - r * r) * part) for part in (noise, -noise)]
        wins = [
            np.sign((query * brain).sum(axis=1) - sign * against)
            for brain in own
            for sign in (1, -1)
        ]
        curve[place] = 0.5 + np.mean(wins) / 2
    curve += 0.5 - curve[0]
    return np.maximum.accumulate(np.minimum(curve, 1.0))


def _unit(values: Float64[np.ndarray, "row dim"]) -> Float64[np.ndarray, "row dim"]:
    unit: np.ndarray = values / np.linalg.norm(values, axis=1, keepdims=True)
    return unit
