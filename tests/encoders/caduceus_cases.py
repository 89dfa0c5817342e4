"""Caduceus' fixtures by kind, and the comparison that each of them asks for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_sets import parity_cases
from torch import Tensor

from encoders import load_encoder
from encoders.caduceus.model import CaduceusForMaskedLM

DTYPES = ("float32", "float64")
both_dtypes = pytest.mark.parametrize("dtype", DTYPES)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def cases_of(*kinds: str) -> list[Path]:
    found = [p for p in parity_cases("caduceus") if (p / "case.json").is_file()]
    return [path for path in found if read_json(path / "case.json")["kind"] in kinds]


def over_cases(*kinds: str) -> pytest.MarkDecorator:
    chosen = cases_of(*kinds)
    assert chosen, f"no fixture of kind {kinds}"
    return pytest.mark.parametrize("case", chosen, ids=[path.name for path in chosen])


def backbone(folder: Path, dtype: str, **config: Any) -> CaduceusForMaskedLM:
    encoder = load_encoder("caduceus", folder, dtype=dtype, config=config or None)
    assert isinstance(encoder.backbone, CaduceusForMaskedLM)
    return encoder.backbone


def assert_close(
    case: Path, dtype: str, found: dict[str, Tensor], expected: dict[str, Tensor]
) -> set[str]:
    """Compare all `found` with what the fixture holds for them; return the keys compared."""
    tolerance = read_json(case / "case.json")["tolerance"][dtype]
    suffix = "_f64" if dtype == "float64" else ""
    compared = {name + suffix for name in found} & set(expected)
    for name, value in found.items():
        if name + suffix in compared:
            torch.testing.assert_close(
                value.detach(),
                expected[name + suffix],
                **tolerance,
                msg=lambda m, n=name: f"{n}: {m}",
            )
    return compared


def keys_of(expected: dict[str, Tensor], dtype: str) -> set[str]:
    """Return the keys that count for one arithmetic."""
    floating = {key for key, value in expected.items() if value.is_floating_point()}
    return {key for key in floating if key.endswith("_f64") == (dtype == "float64")}
