"""The catalogue says what the networks are."""

import pytest

from encoders import list_encoders, load_encoder
from encoders.catalogue import CATALOGUE


def test_the_catalogue_knows_every_encoder_of_ours() -> None:
    assert set(list_encoders()) <= set(CATALOGUE)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - {"dosage", "huggingface"}))
def test_an_entry_says_what_the_published_network_is(name: str) -> None:
    spec, entry = load_encoder(name).spec, CATALOGUE[name]
    assert (spec.modality, spec.feature_dim, spec.parameters, spec.code_license) == (
        entry.modality,
        entry.feature_dim,
        entry.parameters,
        entry.code_license,
    )
