"""Ids that nothing answers to are warned of: how many, the first few, and what they may be."""

from multimodal.cohort.strays import find_unmatched_samples, find_unmatched_scans


def test_all_together_is_no_warning() -> None:
    assert find_unmatched_scans(["01", "sub-02"], {"01", "sub-02"}, ["sub-01", "sub-02"]) == []
    assert find_unmatched_samples({"sub-01": "A"}, ["A"]) == []


def test_many_are_counted_and_the_first_few_named() -> None:
    ids = [f"sub-{n:02d}" for n in range(9)]
    (warning,) = find_unmatched_scans(ids, set(ids[:2]), ids[:2])
    assert "7 participants (sub-02, sub-03, sub-04, ...)" in warning.found


def test_a_slip_of_one_character_is_guessed_where_only_one_fits() -> None:
    _, warning = find_unmatched_scans(["sub-1", "sub-00O2"], {"sub-1"}, ["sub-1", "sub-0002"])
    assert warning.fix == "sub-0002 may be sub-00O2"
    _, warning = find_unmatched_scans(["sub-03", "sub-04"], set(), ["sub-05"])
    assert warning.fix == ""
    (warning,) = find_unmatched_samples({"sub-1": "G01", "sub-2": "GO2"}, ["G01", "G02"])
    assert warning.fix == "G02 may be GO2"
    assert "1 sample (G02)" in warning.found


def test_those_without_genotypes_are_named() -> None:
    (warning,) = find_unmatched_samples({"sub-1": "A", "sub-2": None}, ["A"])
    assert "1 participant (sub-2)" in warning.found
