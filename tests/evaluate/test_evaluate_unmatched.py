"""Results without strata: nothing in them may pass for matched."""

import json

import numpy as np

from multimodal.evaluate.summary import Evaluated, EvaluateOptions, evaluate_latents
from multimodal.evaluate.unmatched import REASON, without_matching


def test_the_matched_half_is_emptied_and_the_raw_kept() -> None:
    rng = np.random.default_rng(0)
    gene, brain = rng.standard_normal((2, 20, 4))
    rows = np.arange(20)
    who = Evaluated([*map(str, rows)], rows % 2, rows, np.full(20, "all"))
    options = EvaluateOptions(permutations=19, bootstrap_replicates=10)
    found = evaluate_latents(
        gene, brain, who, controls={"covariates_only": (brain, gene)}, options=options
    )
    before = json.dumps(found)
    emptied = without_matching(found)
    assert json.dumps(found) == before
    for block in (emptied, emptied["controls"]["covariates_only"]):
        assert block["permutation"]["matched"]["p"] is None
        assert block["permutation"]["matched"]["reason"] == REASON
        assert block["null"]["matched"] is None
        assert {way["n"] for way in block["retrieval"]["matched"].values()} == {0}
    assert emptied["permutation"]["raw"] == found["permutation"]["raw"]
    assert (emptied["galleries"]["matched"]["count"], emptied["gallery_size"]) == (0, 20)
    assert without_matching(emptied) == emptied


def test_what_is_missing_stays_missing() -> None:
    assert without_matching({"cohort": {"participants": 3}}) == {"cohort": {"participants": 3}}
