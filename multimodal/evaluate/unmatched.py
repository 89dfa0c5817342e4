"""Results of an evaluation whose candidates were matched on nothing."""

from collections.abc import Mapping
from typing import Any

from multimodal.evaluate.retrieval import DIRECTIONS

REASON = "evaluation.strata is empty, so candidates were matched on nothing"


def without_matching(found: Mapping[str, Any]) -> dict[str, Any]:
    """Empty the matched half of results that were computed without strata.

    Without strata each matched gallery is a whole fold, so the matched test is the raw one under a
    name that promises more.

    Parameters
    ----------
    found : mapping
        What `multimodal.evaluate.summary.evaluate_latents` returns; parts may be missing.

    Returns
    -------
    dict
        The same, with no matched gallery, ``n`` 0, ``p`` None and a ``reason`` in the matched
        blocks of the genome and of every control.
    """
    emptied = _block(found)
    if found.get("galleries"):
        none = {"subjects": 0, "count": 0, "smallest": 0, "median": 0.0, "largest": 0}
        dropped = {"strata_dropped": 0, "subjects_dropped": 0, "reason": REASON}
        before = found["galleries"].get("matched") or {}
        emptied["galleries"] = {**found["galleries"], "matched": {**before, **none, **dropped}}
    if found.get("controls"):
        emptied["controls"] = {
            name: _block(control) for name, control in found["controls"].items() if control
        }
    return emptied


def _block(found: Mapping[str, Any]) -> dict[str, Any]:
    block = dict(found)
    if found.get("retrieval"):
        nobody = {way: {"n": 0, "reason": REASON} for way in DIRECTIONS}
        block["retrieval"] = {**found["retrieval"], "matched": nobody}
    if found.get("permutation"):
        names = ("statistic", "p", "null_mean", "null_sd", "null_inflation")
        before = found["permutation"].get("matched") or {}
        untested = {**before, **dict.fromkeys(names), "n": 0, "reason": REASON}
        block["permutation"] = {**found["permutation"], "matched": untested}
    if found.get("null"):
        block["null"] = {**found["null"], "matched": None}
    return block
