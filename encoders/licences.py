"""Licences of published weights: what they are, and saying once that one is not for every use."""

import logging
import re
from pathlib import Path

_NON_COMMERCIAL = re.compile(
    r"(^|[-_. ])NC([-_. ]|$)|non-?commercial|research-only|academic", re.IGNORECASE
)
_NO_DERIVATIVES = re.compile(r"(^|[-_. ])ND([-_. ]|$)", re.IGNORECASE)
_FRONT_MATTER = "---"
_logger = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()


def is_non_commercial(licence: str) -> bool:
    """Tell whether a licence, by its SPDX or hub identifier, forbids commercial use."""
    return bool(_NON_COMMERCIAL.search(licence))


def forbids_derivatives(licence: str) -> bool:
    """Tell whether a licence forbids passing on what was made from the weights."""
    return bool(_NO_DERIVATIVES.search(licence))


def say_licence_once(licence: str, weights_id: str) -> None:
    """Log, once in a process, that weights are under a non-commercial licence.

    Parameters
    ----------
    licence : str
        SPDX or hub identifier. One that allows commercial use is passed over in silence.
    weights_id : str
        Whose licence it is.
    """
    key = (licence.upper(), weights_id)
    if not is_non_commercial(licence) or key in _said:
        return
    _said.add(key)
    forbidden = "commercial use"
    if forbids_derivatives(licence):
        forbidden += ", and passing on changed weights (fine-tuned ones among them)"
    _logger.warning("The weights %s are licensed %s: no %s.", weights_id, licence, forbidden)


def read_card_licence(folder: Path) -> str | None:
    """Return the licence that the model card (``README.md``) of a folder names, or None.

    Parameters
    ----------
    folder : Path
        With a model card as the Hugging Face hub wants it: YAML between two lines of ``---``, its
        key ``license`` an identifier, or ``other`` with the name under ``license_name``.
    """
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8-sig", errors="replace") as opened:
        # Most folders' README is no model card: the hub's library need not be imported for it.
        if opened.readline().strip() != _FRONT_MATTER:
            return None
    values = _front_matter(card)
    licence = values.get("license")
    if licence == "other":
        licence = values.get("license_name", licence)
    return licence if isinstance(licence, str) and licence else None


def _front_matter(card: Path) -> dict[str, object]:
    from huggingface_hub import metadata_load

    try:
        return metadata_load(card) or {}
    # A card is written by hand; one that is no YAML names no licence that could be read.
    except Exception:
        return {}
