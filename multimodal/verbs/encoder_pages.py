"""What ``genebold encoders`` prints, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encoders.licences import forbids_derivatives, is_non_commercial
from multimodal.verbs.console import table

if TYPE_CHECKING:
    from encoders.base import EncoderSpec
    from encoders.catalogue import Entry
    from encoders.verify import Verification

_WIDTH = 100
_INDENT = 20
# Units of a spec's fields, and words for what their names leave open.
_FIELDS = {
    "max_length_bp": ("longest window", "bp"),
    "alphabet": ("letters", ""),
    "parcels": ("parcels", ""),
    "frames": ("frames", ""),
    "shape": ("voxels", ""),
    "voxel_mm": ("voxel size", "mm"),
    "tr_s": ("repetition time", "s"),
    "space": ("space", ""),
    "atlas": ("atlas", ""),
    "order": ("parcel order", ""),
    "needs_xyz": ("coordinates", ""),
    "orientation": ("axes run", ""),
    "normalisation": ("normalisation", ""),
    "statistics": ("its statistics", ""),
}
_INPUT_KINDS = {
    "WindowInput": "DNA windows, one token a base",
    "ParcelInput": "parcel time series [batch, parcels, frames]",
    "VolumeInput": "volume series [batch, 1, x, y, z, frames]",
}
_ORDERS = {"atlas": "the atlas' own", "y": "ascending in Y (mm)"}


def list_page(entries: Mapping[str, Entry | str], owners: Mapping[str, str]) -> str:
    """Return the table of all encoders.

    Parameters
    ----------
    entries : mapping of str to Entry or str
        By name; text says why there is none.
    owners : mapping of str to str
        The packages that bring what is not ours.
    """
    header = ["name", "side", "features", "parameters", "input", "code", "weights", "from"]
    rows: list[list[Any]] = []
    for name, entry in entries.items():
        owner = owners.get(name, "genebold")
        if isinstance(entry, str):
            rows.append([name, "", "", "", f"cannot be made: {entry[:60]}", "", "", owner])
            continue
        sizes = [_count(entry.feature_dim), _count(entry.parameters)]
        licences = [entry.code_license, entry.weight_license]
        words = [name, entry.modality, *sizes, entry.takes, *licences]
        rows.append([*words, owner])
    return (
        table(rows, header)
        + "\n\nSizes and licences are those of the published networks.\n"
        + "genebold encoders show NAME has the rest."
    )


def _count(number: int | None) -> str:
    return "varies" if number is None else f"{number:,}"


def show_page(
    name: str, entry: Entry, spec: EncoderSpec | None, reason: str, scan: str = ""
) -> str:
    """Return all that is known of one encoder.

    Parameters
    ----------
    spec : EncoderSpec or None
        Of the encoder as it was loaded; None where it cannot be without weights.
    reason : str
        Why not.
    scan : str
        What its selective scan runs on here; empty for a network without one.
    """
    if spec is None:
        sections = [f"{name}  ({entry.modality})", _section("Published", _published(entry))]
        lines = textwrap.wrap(f"Not built: {reason}", _WIDTH) if reason else []
        return "\n\n".join([*sections, *(["\n".join(lines)] if lines else [])])
    per = "strand and window" if spec.modality == "dna" else "segment"
    size = "follows from the input" if spec.feature_dim is None else f"{spec.feature_dim:,}"
    about = [("paper", spec.paper), (f"features a {per}", size)]
    about.append(("parameters", f"{spec.parameters:,}"))
    if scan:
        about.append(("selective scan", scan))
    weights = [
        ("loaded", spec.weights_id),
        ("sha256", spec.weights_sha256),
        ("licence of code", spec.code_license),
        ("licence of weights", _licence(spec.weight_license)),
        ("seen in pretraining", ", ".join(spec.pretraining_cohorts) or "nothing"),
    ]
    sections = [
        f"{name}  ({spec.modality})",
        _section("Network", about),
        _section("Input", _input_rows(spec)),
        _section("Weights, as loaded", weights),
    ]
    if entry.published:
        sections.append(_section("Published weights", _published(entry)))
    if spec.config:
        arguments = [(key, repr(value)) for key, value in spec.config.items()]
        sections.append(_section("Constructor arguments", arguments))
    return "\n\n".join(sections)


def _published(entry: Entry) -> list[tuple[str, str]]:
    return [
        ("where", ", ".join(entry.published) or "-"),
        ("input", entry.takes),
        ("licence of code", entry.code_license),
        ("licence of weights", _licence(entry.weight_license)),
        ("seen in pretraining", ", ".join(entry.pretraining_cohorts) or "nothing"),
    ]


def _licence(licence: str) -> str:
    limits = []
    if is_non_commercial(licence):
        limits.append("no commercial use")
    if forbids_derivatives(licence):
        limits.append("changed weights may not be passed on")
    return f"{licence} ({'; '.join(limits)})" if limits else licence


def _input_rows(spec: EncoderSpec) -> list[tuple[str, str]]:
    values = spec.as_dict()["input"]
    kind = values.pop("kind")
    rows = [("kind", _INPUT_KINDS.get(kind, kind))]
    for key, value in values.items():
        name, unit = _FIELDS.get(key, (key.replace("_", " "), ""))
        rows.append((name, f"{_value(key, value)} {unit if value is not None else ''}".rstrip()))
    return rows


def _value(key: str, value: Any) -> str:
    if value is None:
        return "any"
    if key == "needs_xyz":
        return "x, y, z of each parcel in mm" if value else "not used"
    if key == "order":
        return _ORDERS.get(value, value)
    if isinstance(value, dict):
        return ", ".join(f"{name} = {number!r}" for name, number in value.items()) or "none"
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def verify_page(found: Verification, dtype: str, seed: int) -> str:
    """Return the report of ``genebold encoders verify``."""
    spec, prints = found.spec, found.fingerprint
    checks = [
        (
            "ok" if check.passed else "FAILED",
            f"{check.what}: apart by {check.apart:.1e} of the largest feature, "
            f"at most {check.limit:g}",
        )
        for check in found.checks
    ]
    shape = " x ".join(map(str, prints.shape))
    first = ", ".join(f"{value:.5g}" for value in prints.first)
    compared = [
        ("tensors", prints.tensors),
        ("features", prints.features or f"none in {dtype}: rounding differs between machines"),
        ("computed", f"[{shape}] in {dtype} of made-up input {seed}"),
        ("norm and first", f"{prints.norm:.5g}; {first}, ..."),
    ]
    notes = (
        "Equal checkpoints give equal `tensors`, to the bit. `features` are float64, rounded to a "
        "hundred-thousandth of the largest; machines round them apart about twice in ten thousand "
        "fingerprints: where they differ, compare norm and first."
    )
    return "\n\n".join(
        [
            f"{spec.name}  {spec.weights_id}",
            _section("Keys", _key_rows(found)),
            _section("Checks", checks),
            _section("Fingerprint", compared),
            "\n".join(textwrap.wrap(notes, _WIDTH, break_on_hyphens=False)),
        ]
    )


def _key_rows(found: Verification) -> list[tuple[str, str]]:
    keys = found.keys
    if keys is None:
        return [("stored", "nothing: random weights")]
    types = ", ".join(f"{name} ({count})" for name, count in sorted(keys.dtypes.items()))
    aside = ", ".join(f"{name} ({count})" for name, count in sorted(keys.set_aside.items()))
    return [
        ("stored", f"{keys.stored:,} tensors, {keys.numbers:,} numbers, {types}"),
        ("used", f"{keys.used:,} tensors"),
        ("set aside", aside or "none"),
        ("problems", "0 missing, 0 unexpected, 0 of wrong shape or type, 0 not finite"),
        ("licence", _licence(found.spec.weight_license)),
    ]


def _section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max(_INDENT, *(len(name) for name, _ in rows)) + 4
    lines = [title]
    for name, value in rows:
        wrapped = textwrap.wrap(value, max(_WIDTH - width, 40), break_on_hyphens=False) or [""]
        lines.append(f"  {name:<{width - 2}}{wrapped[0]}")
        lines += [" " * width + more for more in wrapped[1:]]
    return "\n".join(lines)
