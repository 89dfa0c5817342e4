"""The outcome of a run in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

LEVEL = 0.05
# Of the percentile above chance, when candidates are matched; a confound leaves next to nothing.
_SHARE_LEFT = 0.5
Tone = Literal["found", "warned", "none", "open"]


@dataclass(frozen=True)
class Verdict:
    """What the page says first.

    Parameters
    ----------
    tone : {"found", "warned", "none", "open"}
        Decides the colour: an effect, an effect to distrust, no effect, not tested.
    headline : str
        One sentence.
    detail : str
        What the headline rests on.
    """

    tone: Tone
    headline: str
    detail: str


def judge(metrics: dict[str, Any]) -> Verdict:
    """Turn the permutation tests of ``metrics.json`` into a verdict.

    The matched test decides; the raw test and the covariates-only control say how to read it.
    ``settings.strata`` names what was matched; an empty list is no matching at all, whatever the
    matched blocks hold.
    """
    tests = metrics.get("permutation") or {}
    raw, matched = (tests.get(kind) or {} for kind in ("raw", "matched"))
    strata = strata_in(metrics)
    if raw.get("p") is not None and strata == []:
        return _nothing_matched(raw)
    if matched.get("p") is None:
        return _without_matched(raw, matched, strata)
    if matched["p"] > LEVEL:
        return _not_found(raw, matched, strata)
    control = ((metrics.get("controls") or {}).get("covariates_only") or {}).get(
        "permutation"
    ) or {}
    control_p = (control.get("matched") or {}).get("p")
    if control_p is not None and control_p <= LEVEL:
        return Verdict(
            "warned",
            "Above chance, but covariates alone do as well: do not read this as a genetic effect.",
            f"Among matched candidates {_says(matched)}; the control that sees covariates in place "
            f"of the genome reaches p = {show_p(control_p)}. Matching is too coarse, or a "
            "covariate that is not matched (age, motion, a finer ancestry) tells people apart.",
        )
    alike = f"of the same {listed(strata)}" if strata else "alike in the matched covariates"
    return Verdict(
        "found",
        f"Genomes find their own brains better than chance, among people {alike}.",
        f"Among matched candidates {_says(matched)}.",
    )


def strata_in(metrics: dict[str, Any]) -> list[str] | None:
    """Return what candidates were matched on; None where nothing says it."""
    strata = (metrics.get("settings") or {}).get("strata")
    return None if strata is None else [str(name) for name in strata]


def listed(names: Sequence[str], last: str = "and") -> str:
    """Join names as a sentence does: ``sex, site and ancestry``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def show_p(p: float) -> str:
    """Write a p-value with the digits that matter."""
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _says(test: dict[str, Any]) -> str:
    facts = [f"p = {show_p(test['p'])}"]
    if test.get("n") is not None:
        facts.append(f"{test['n']:,} subjects")
    if test.get("statistic") is None:
        return f"retrieval was tested ({', '.join(facts)})"
    return (
        f"a subject's own brain ranks ahead of {100 * test['statistic']:.1f}% of the others on "
        f"average (50% by chance; {', '.join(facts)})"
    )


def _not_found(raw: dict[str, Any], matched: dict[str, Any], strata: list[str] | None) -> Verdict:
    if raw.get("p") is not None and raw["p"] <= LEVEL:
        if _stays(raw, matched):
            return Verdict(
                "open",
                "Above chance among all candidates, and not clearly less where they are matched, "
                "but too few to tell there.",
                f"Among all candidates {_says(raw)}; among matched candidates {_says(matched)}. "
                f"It may be an alignment or {_confounds(strata)}: more subjects would decide.",
            )
        return Verdict(
            "warned",
            "Above chance only until candidates are matched: what looks like alignment here may be "
            f"{_confounds(strata)}.",
            f"Among all candidates {_says(raw)}; among matched candidates {_says(matched)}.",
        )
    return Verdict(
        "none",
        "No evidence that genomes find their own brains better than chance.",
        f"Among matched candidates {_says(matched)}. An effect too small for this cohort cannot be "
        "told from none.",
    )


def _stays(raw: dict[str, Any], matched: dict[str, Any]) -> bool:
    """Whether matching leaves most of what is above chance.

    That one p is below a level and another is not is no difference between the two.
    """
    if raw.get("statistic") is None or matched.get("statistic") is None:
        return False
    return bool(matched["statistic"] - 0.5 > _SHARE_LEFT * (raw["statistic"] - 0.5))


def _nothing_matched(raw: dict[str, Any]) -> Verdict:
    if raw["p"] > LEVEL:
        return Verdict(
            "none",
            "No evidence that genomes find their own brains better than chance, even without "
            "matching.",
            f"Among all candidates {_says(raw)}. An effect too small for this cohort cannot be "
            "told from none.",
        )
    return Verdict(
        "warned",
        "Above chance among all candidates, but not matched: what looks like alignment here may be "
        "sex, site or ancestry.",
        f"Among all candidates {_says(raw)}. Nothing was matched (evaluation.strata is empty); "
        "name strata and run genebold evaluate again to decide.",
    )


def _without_matched(
    raw: dict[str, Any], matched: dict[str, Any], strata: list[str] | None
) -> Verdict:
    if raw.get("p") is None:
        return Verdict(
            "open",
            "Nothing has been tested yet.",
            "Run genebold evaluate to test retrieval against its permutation null.",
        )
    reason = matched.get("reason") or "there is no matched gallery"
    confounds = _confounds(strata)
    return Verdict(
        "open",
        "Not decided: candidates could not be matched.",
        f"Among all candidates {_says(raw)}, but {reason}. "
        f"{confounds[0].upper()}{confounds[1:]} may explain it.",
    )


def _confounds(strata: list[str] | None) -> str:
    return listed(strata or ["sex", "site", "ancestry"], last="or")
