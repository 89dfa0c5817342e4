"""What was filled in or passed over in the genotypes, by subject."""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from multimodal.genome.checks import find_missing_imbalance
from multimodal.genome.counts import GenotypeCounts

COUNTS = ("missing", "haploid", "unphased", "overlapping", "symbolic")


def sum_counts(participant_ids: Sequence[str], counts: Iterable[GenotypeCounts]) -> pd.DataFrame:
    """Add up the counts of windows or regions.

    Returns
    -------
    DataFrame
        One row a subject: ``subject``, ``variants`` (variants looked at, the same for all), and
        the number of calls ``missing``, ``haploid``, ``unphased``, ``overlapping``, ``symbolic``.
    """
    totals = {name: np.zeros(len(participant_ids), dtype=np.int64) for name in COUNTS}
    variants = 0
    for count in counts:
        variants += len(count.sites)
        totals["missing"] += count.missing_by_subject
        for name in COUNTS[1:]:
            totals[name] += getattr(count, name)
    return pd.DataFrame({"subject": list(participant_ids), "variants": variants, **totals})


def warn_if_unbalanced(calls: pd.DataFrame, participants: pd.DataFrame) -> None:
    """Warn where sites differ in their missing calls, which are read as the reference allele.

    Parameters
    ----------
    calls : DataFrame
        As `sum_counts` gives it.
    participants : DataFrame
        As in `Cohort`; without a column ``site`` there is nothing to compare.
    """
    if "site" not in participants or not len(calls):
        return
    site = participants["site"].reindex(calls["subject"]).fillna("n/a").map(str).tolist()
    missing, variants = calls["missing"].to_numpy(), int(calls["variants"].iloc[0])
    for problem in find_missing_imbalance(missing, variants, site, what="site"):
        warnings.warn(str(problem), stacklevel=3)
