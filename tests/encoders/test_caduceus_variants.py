"""Embeddings of single variants, as upstream reads them and as they should be read."""

from pathlib import Path

import pytest
import torch
from caduceus_cases import assert_close, both_dtypes, cases_of, keys_of, over_cases, read_json
from safetensors.torch import load_file

from encoders import load_encoder
from encoders.caduceus.variant_effect import embed_variants, find_variants
from encoders.errors import InputError


def outputs(case: Path, dtype: str, reading: str, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    encoder = load_encoder("caduceus", case, dtype=dtype)
    inputs = load_file(case / "inputs.safetensors")
    alleles = [inputs[f"{allele}_input_ids"][rows] for allele in ("ref", "alt")]
    found = {}
    for size in read_json(case / "case.json")["windows"]:
        embedded = embed_variants(encoder, *alleles, window=size, reading=reading)
        found[f"w{size}.concat_avg_ws"] = embedded.forward
        found[f"w{size}.rc_concat_avg_ws"] = embedded.reverse
    return found


@over_cases("vep")
@both_dtypes
@torch.no_grad()
def test_as_upstream_reads_them(case: Path, dtype: str) -> None:
    expected = load_file(case / "expected.safetensors")
    rows = torch.arange(len(expected["variant_idx"]))
    found = outputs(case, dtype, "upstream", rows)
    assert assert_close(case, dtype, found, expected) == keys_of(expected, dtype)


@over_cases("vep")
def test_positions(case: Path) -> None:
    inputs = load_file(case / "inputs.safetensors")
    expected = load_file(case / "expected.safetensors")
    found = find_variants(inputs["ref_input_ids"], inputs["alt_input_ids"])
    assert torch.equal(found, expected["variant_idx"])
    other = (inputs["ref_rc_input_ids"], inputs["alt_rc_input_ids"])
    middle = other[0].shape[1] // 2 - 1
    assert torch.equal(find_variants(*other, expected=middle), expected["rc_variant_idx"])


@over_cases("vep")
@both_dtypes
@torch.no_grad()
def test_read_over_the_variant_the_other_strand_differs_where_upstream_mirrors(
    case: Path, dtype: str
) -> None:
    expected = load_file(case / "expected.safetensors")
    position = expected["variant_idx"]
    rows = (position >= 0).nonzero()[:, 0]
    length = load_file(case / "inputs.safetensors")["ref_input_ids"].shape[1]
    wanted = {key: value[rows] for key, value in expected.items()}
    found = outputs(case, dtype, "aligned", rows)
    forward = {key: value for key, value in found.items() if ".rc_" not in key}
    reverse = {key: value for key, value in found.items() if ".rc_" in key}
    assert_close(case, dtype, forward, wanted)
    if not load_encoder("caduceus", case).backbone.config.rcps:
        assert_close(case, dtype, reverse, wanted)
        return
    assert bool((position[rows] != length - 1 - position[rows]).any())
    with pytest.raises(AssertionError, match="rc_concat"):
        assert_close(case, dtype, reverse, wanted)


@pytest.mark.parametrize("case", cases_of("vep"), ids=lambda case: case.name)
@torch.no_grad()
def test_strands_exchange_with_the_window(case: Path) -> None:
    """The right reading gives each strand what the other gives for the other strand's window."""
    encoder = load_encoder("caduceus", case, dtype="float64")
    inputs = load_file(case / "inputs.safetensors")
    differing = (inputs["ref_input_ids"] != inputs["alt_input_ids"]).sum(1)
    one = differing == 1
    alleles = [inputs[f"{allele}_input_ids"][one] for allele in ("ref", "alt")]
    others = [inputs[f"{allele}_rc_input_ids"][one] for allele in ("ref", "alt")]
    plain = embed_variants(encoder, *alleles, window=8)
    mirrored = embed_variants(encoder, *others, window=8)
    torch.testing.assert_close(plain.forward, mirrored.reverse, rtol=0, atol=1e-10)
    torch.testing.assert_close(plain.reverse, mirrored.forward, rtol=0, atol=1e-10)
    assert torch.equal(plain.position, alleles[0].shape[1] - 1 - mirrored.position)


def test_alleles_that_do_not_differ_are_named() -> None:
    encoder = load_encoder("caduceus", config={"d_model": 8, "n_layer": 1})
    reference, _ = encoder.tokenize(["ACGTA", "ACGTA", "ACGTA"])
    variant, _ = encoder.tokenize(["ACGTA", "ACCTA", "ACGTA"])
    with pytest.raises(InputError) as error:
        embed_variants(encoder, reference, variant, window=2)
    assert [problem.where for problem in error.value.problems] == ["window 1", "window 3"]
    with pytest.raises(ValueError, match="at least 1"):
        embed_variants(encoder, reference, variant, window=0)
    with pytest.raises(ValueError, match="one shape"):
        embed_variants(encoder, reference, variant[:, 1:], window=2)
