"""Whether a ``bundle.json`` says only what a bundle may say; nothing in it is used before."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from encoders.errors import InputError, Problem
from encoders.hub import is_hub_id
from multimodal.bold.options import BoldOptions
from multimodal.features.options import GenomeOptions
from multimodal.genome.regions import Region
from multimodal.latent.delta import KEY

FORMAT, FORMAT_WITH_CHANGES = 1, 2
"""The second where encoders were fine-tuned: a reader that knows only the first would use the
published weights, and must refuse. (The first bundles with changes still said 1.)"""
SIDES = ("dna", "brain")
_MAPPINGS = ("dna", "brain", "genome", "bold", "towers")
_REQUIRED = ("format", *_MAPPINGS, "regions", "towers_sha256")
# Hydra instantiates by these; no bundle names code.
_CODE_KEY = re.compile(r"_(target|partial|args|convert|recursive)_")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COPY = "copy the bundle again, or align again"
_KNOWN = f"a bundle of format {FORMAT} or {FORMAT_WITH_CHANGES}"


def find_manifest_problems(manifest: Any, file: Path) -> list[Problem]:
    """Find everything about a manifest that is not as `align` writes it.

    Parameters
    ----------
    manifest : object
        What JSON gave.
    file : Path
        Where it came from, for the messages.
    """
    if not isinstance(manifest, dict):
        return [_broken(file, f"a {type(manifest).__name__}", "a JSON object")]
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        return [_broken(file, f"keys missing: {missing}", _KNOWN)]
    if manifest["format"] not in (FORMAT, FORMAT_WITH_CHANGES):
        return [_broken(file, f"format {manifest['format']!r}", _KNOWN)]
    wrong = [key for key in _MAPPINGS if not isinstance(manifest[key], dict)]
    if wrong:
        return [_broken(file, f"no mapping: {wrong}", "a mapping under each of these keys")]
    problems = [
        Problem(
            "bundle-code", f"{file} {place}", "names code to run", "no such key in any bundle",
            "do not use this bundle: `align` writes none like it",
        )
        for place in _code_keys(manifest)
    ]  # fmt: skip
    for side in SIDES:
        problems += _side_problems(manifest[side], f"{file} {side}")
    problems += _option_problems(GenomeOptions, manifest["genome"], {"windows"}, f"{file} genome")
    problems += _option_problems(BoldOptions, manifest["bold"], {"atlas"}, f"{file} bold")
    problems += _region_problems(manifest["regions"], f"{file} regions")
    if not _SHA256.fullmatch(str(manifest["towers_sha256"])):
        problems.append(_broken(f"{file} towers_sha256", "no SHA-256", "64 hexadecimal digits"))
    problems += _delta_problems(manifest, f"{file} {KEY}")
    return problems


def genome_options(manifest: Mapping[str, Any]) -> GenomeOptions:
    """Return how the bundle's genomes were prepared."""
    values = {name: value for name, value in manifest["genome"].items() if name != "windows"}
    filters = values.get("filters")
    return GenomeOptions(**{**values, "filters": None if filters is None else tuple(filters)})


def bold_options(manifest: Mapping[str, Any]) -> BoldOptions:
    """Return how the bundle's scans were prepared; in one space, where it tells of one only."""
    values = {name: value for name, value in manifest["bold"].items() if name != "atlas"}
    spaces = (manifest.get("scans") or {}).get("spaces", ())
    if values.get("space") is None and len(spaces) == 1:
        values["space"] = spaces[0]
    return BoldOptions(**values)


def _side_problems(section: Mapping[str, Any], where: str) -> Iterator[Problem]:
    if not isinstance(section.get("name"), str):
        yield _broken(f"{where}.name", repr(section.get("name")), "the name of an encoder")
    spec = section.get("spec")
    if section.get("name") != "dosage" and not (
        isinstance(spec, dict) and "weights_sha256" in spec
    ):
        yield _broken(f"{where}.spec", "no digest of the weights", "the encoder's record")
    weights, local = section.get("weights"), section.get("local_weights")
    if weights is not None and not (isinstance(weights, str) and is_hub_id(weights)):
        yield _path_problem(f"{where}.weights", weights, "a hub id, or null")
    if local is not None and (not isinstance(local, str) or local != Path(local).name):
        yield _path_problem(f"{where}.local_weights", local, "a bare file or folder name")


def _tuned_sides(manifest: Mapping[str, Any]) -> Any:
    """What the training's settings say was fine-tuned."""
    align = manifest.get("align")
    asked = align.get("fine_tune") if isinstance(align, dict) else None
    return asked.get("sides") if isinstance(asked, dict) else None


def _delta_problems(manifest: Mapping[str, Any], where: str) -> Iterator[Problem]:
    said, tuned = manifest.get(KEY), _tuned_sides(manifest)
    if said is None:
        if tuned:
            yield _broken(where, "nothing", f"what was learned by {tuned}, as align.fine_tune says")
        elif manifest["format"] == FORMAT_WITH_CHANGES:
            yield _broken(where, "nothing", "what was learned, as the format says")
        return
    sides = said.get("sides") if isinstance(said, dict) else None
    known = [side for side in sorted(SIDES) if isinstance(sides, list) and side in sides]
    if not known or sides != known:
        yield _broken(where, "no list of sides", f"some of {list(SIDES)}, under sides")
    elif not _SHA256.fullmatch(str(said.get("sha256"))):
        yield _broken(f"{where}.sha256", "no SHA-256", "64 hexadecimal digits")


def _option_problems(
    cls: type, values: Mapping[str, Any], beside: set[str], where: str
) -> Iterator[Problem]:
    known = {field.name for field in dataclasses.fields(cls)} | beside
    unknown = sorted(set(values) - known)
    if unknown:
        yield _broken(where, f"unknown keys {unknown}", f"some of {sorted(known)}")
        return
    build: Callable[[Mapping[str, Any]], Any] = (
        (lambda given: genome_options({"genome": given}))
        if cls is GenomeOptions
        else (lambda given: bold_options({"bold": given}))
    )
    try:
        build(values)
    except InputError as error:
        yield from error.problems
    except (TypeError, ValueError) as error:
        yield _broken(where, str(error), "settings as `align` writes them")


def _region_problems(regions: Any, where: str) -> Iterator[Problem]:
    fields = {field.name for field in dataclasses.fields(Region)}
    if not isinstance(regions, list) or not regions:
        yield _broken(where, "no list of regions", "at least one region")
        return
    for number, region in enumerate(regions):
        if not isinstance(region, dict) or set(region) != fields:
            yield _broken(f"{where}[{number}]", "not a region", f"a mapping of {sorted(fields)}")
            continue
        texts = [region[name] for name in ("name", "chrom", "strand")]
        ends = [region[name] for name in ("start_bp", "end_bp")]
        plain = all(isinstance(text, str) and text.isprintable() for text in texts)
        if not plain or not all(type(end) is int for end in ends):
            yield _broken(f"{where}[{number}]", "not a region", "plain names and whole numbers")


def _code_keys(values: Any, place: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            here = f"{place}.{key}".lstrip(".")
            if _CODE_KEY.fullmatch(str(key)):
                yield here
            yield from _code_keys(value, here)
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from _code_keys(value, f"{place}[{number}]")


def _path_problem(where: str, found: Any, wanted: str) -> Problem:
    fix = "do not use this bundle: `align` writes none like it"
    return Problem("bundle-path", where, repr(found), wanted, fix)


def _broken(where: Path | str, found: str, wanted: str) -> Problem:
    return Problem("bundle-broken", str(where), found, wanted, _COPY)
