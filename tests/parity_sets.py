"""Where the numbers computed by the published encoders lie: ours, and a full set where at hand."""

import os
from pathlib import Path

HERE = Path(__file__).parent / "parity"


def parity_roots() -> list[Path]:
    """Folders with fixtures of the published encoders, the full set first.

    The full set is the folder that ``GENEBOLD_PARITY`` names. Cases found twice are run once, from
    the full set.
    """
    named = os.environ.get("GENEBOLD_PARITY")
    return [*([Path(named)] if named else []), HERE]


def parity_cases(model: str) -> list[Path]:
    """Return the case folders of `model` ("caduceus", "brainlm"), each name once."""
    found: dict[str, Path] = {}
    for root in parity_roots():
        for case in sorted((root / model).glob("*/README.md")):
            found.setdefault(case.parent.name, case.parent)
    return [found[name] for name in sorted(found)]
