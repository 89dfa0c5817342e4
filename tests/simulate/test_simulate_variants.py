"""What counts as a single-base variant."""

import pytest

from multimodal.simulate.variants import Variant


@pytest.mark.parametrize(
    ("ref", "alts", "wanted"),
    [("A", ("G",), True), ("G", ("GT",), False), ("AC", ("A",), False), ("A", ("C", "G"), False)],
)
def test_one_base_becomes_one_other(ref: str, alts: tuple[str, ...], wanted: bool) -> None:
    assert Variant("chr1", 10, ref, alts, 0).is_biallelic_snp is wanted
