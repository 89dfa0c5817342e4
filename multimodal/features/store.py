"""Where an encoder's features lie, and what made them."""

import json
from pathlib import Path
from typing import Any

from encoders.errors import InputError, Problem
from multimodal.features.writer import COMPLETE, FINGERPRINT


def dna_store(features_dir: str | Path, encoder: str) -> Path:
    """Return the folder of a DNA encoder's features, ``dosage`` included."""
    return Path(features_dir) / "dna" / encoder.replace("/", "_")


def brain_store(features_dir: str | Path, encoder: str) -> Path:
    """Return the folder of a brain encoder's features."""
    return Path(features_dir) / "brain" / encoder.replace("/", "_")


def read_fingerprint(store_path: str | Path) -> dict[str, Any]:
    """Return what made a complete store.

    Raises
    ------
    InputError
        There is no store, or a run over it was cut off.
    """
    store = Path(store_path)
    if not (store / FINGERPRINT).exists():
        found, wanted = "no features here", "a folder that `genebold encode` wrote"
        raise InputError(Problem("features-missing", str(store), found, wanted))
    if not (store / COMPLETE).exists():
        raise InputError(
            Problem(
                "features-incomplete",
                str(store),
                "the run that encoded these features did not end",
                "a complete store",
                "run `genebold encode` again with the same settings; it goes on where it was",
            )
        )
    fingerprint: dict[str, Any] = json.loads((store / FINGERPRINT).read_text(encoding="utf-8"))
    return fingerprint
