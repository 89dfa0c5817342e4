"""Functional connectivity against numpy.corrcoef."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders import load_encoder
from encoders.connectivity import LARGEST_CORRELATION, Connectivity
from encoders.errors import InputError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=20)
@given(
    batch=st.integers(1, 3),
    parcels=st.integers(2, 12),
    frames=st.integers(4, 60),
    offset=st.sampled_from([0.0, 1e4, -3e5]),
    seed=st.integers(0, 999),
)
def test_equals_numpy(batch: int, parcels: int, frames: int, offset: float, seed: int) -> None:
    runs = noise(batch, parcels, frames, seed=seed) * 20 + offset
    features = load_encoder("fc", dtype="float64")(runs)
    upper = np.triu_indices(parcels, 1)
    for run, feature in zip(runs.numpy(), features.numpy(), strict=True):
        correlation = np.clip(np.corrcoef(run)[upper], -LARGEST_CORRELATION, LARGEST_CORRELATION)
        np.testing.assert_allclose(np.tanh(feature), correlation, atol=1e-8)


def test_float32_runs_are_worked_in_float64() -> None:
    runs = (noise(1, 5, 300) + 1e4).float()
    features = load_encoder("fc")(runs)
    assert features.dtype == torch.float32
    correlation = np.corrcoef(runs[0].double().numpy())[np.triu_indices(5, 1)]
    np.testing.assert_allclose(features[0].numpy(), np.arctanh(correlation), atol=1e-6)


def test_constant_parcel_has_correlation_zero() -> None:
    runs = noise(1, 4, 30)
    runs[0, 2] = 0.1
    correlation = Connectivity()(runs)[0]
    assert correlation[2].tolist() == [0, 0, 0, 0]
    assert torch.isfinite(load_encoder("fc")(runs)).all()


def test_equal_parcels_stay_finite() -> None:
    runs = noise(1, 3, 30)
    runs[0, 1] = 2 * runs[0, 0] + 5
    runs[0, 2] = -runs[0, 0]
    limit = np.arctanh(LARGEST_CORRELATION)
    np.testing.assert_allclose(
        load_encoder("fc", dtype="float64")(runs)[0], [limit, -limit, -limit]
    )


def test_a_run_does_not_depend_on_its_batch() -> None:
    runs = noise(4, 7, 40)
    encoder = load_encoder("fc", dtype="float64")
    alone = torch.cat([encoder(run[None]) for run in runs])
    torch.testing.assert_close(encoder(runs), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given_arguments", [{"weights": "some/where"}, {"config": {"bins": 3}}])
def test_takes_neither_weights_nor_arguments(given_arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match="fc has no weights"):
        load_encoder("fc", **given_arguments)


@pytest.mark.parametrize("shape", [(1, 1, 30), (1, 4, 2), (4, 30)])
def test_refuses_what_has_no_correlation(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least two parcels and three frames"):
        load_encoder("fc")(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_gaps(value: float) -> None:
    runs = noise(2, 4, 30)
    runs[1, 2, 6] = value
    with pytest.raises(InputError, match="run 2, parcel 3, frame 7") as error:
        load_encoder("fc")(runs)
    assert error.value.problems[0].code == "segment-not-finite"
