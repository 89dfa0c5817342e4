"""``genebold encoders``: list, show, verify and convert encoders; build the native kernels."""

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from encoders.errors import InputError, Problem
from multimodal.align.processes import refuse_several
from multimodal.verbs.console import say
from multimodal.verbs.encoder_pages import list_page, show_page, verify_page
from multimodal.verbs.positional import WORDS
from multimodal.verbs.settings import flag, plain


def run(config: DictConfig) -> int:
    """Do one action; ``verify`` fails (exit code 1) where a check does."""
    refuse_several("encoders")
    actions: Mapping[str, Callable[[DictConfig], int]] = {
        "list": _list,
        "show": _show,
        "verify": _verify,
        "convert": _convert,
        "build": _build,
    }
    if config.action not in actions:
        raise InputError(_unknown_action(str(config.action)))
    flag(config.json, "json")
    missing = [key for key in WORDS[config.action] if config[key] is None]
    # Random weights can be verified too: their symmetries are the network's.
    missing = [key for key in missing if key != "weights"]
    if missing:
        usage = " ".join(
            ("genebold encoders", config.action, *map(str.upper, WORDS[config.action]))
        )
        raise InputError(
            [Problem(f"missing-{key}", key, "none", f"a {key}", usage) for key in missing]
        )
    return actions[config.action](config)


def _unknown_action(found: str) -> Problem:
    from encoders.catalogue import CATALOGUE

    fix = ""
    if near := difflib.get_close_matches(found, WORDS, n=1):
        fix = f"did you mean '{near[0]}'?"
    elif found in CATALOGUE:
        fix = f"genebold encoders show {found}"
    return Problem("bad-action", "action", f"'{found}'", f"one of {', '.join(WORDS)}", fix)


def _list(config: DictConfig) -> int:
    from encoders.catalogue import CATALOGUE, Entry, find_entry
    from encoders.registry import list_encoders, third_party

    points = third_party()
    entries: dict[str, Entry | str] = {}
    for name in [*CATALOGUE, *(name for name in list_encoders() if name not in CATALOGUE)]:
        try:
            entries[name] = find_entry(name)
        # A package that fails must not hide the others, whatever it raises.
        except Exception as error:
            entries[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
    if config.json:
        shown = {
            name: {"error": entry} if isinstance(entry, str) else asdict(entry)
            for name, entry in entries.items()
        }
        say(json.dumps(shown, indent=2))
    else:
        owners = {name: point.dist.name if point.dist else "?" for name, point in points.items()}
        say(list_page(entries, owners))
    return 0


def _show(config: DictConfig) -> int:
    from encoders import load_encoder
    from encoders.catalogue import CATALOGUE, find_entry
    from encoders.mamba import uses_scan
    from encoders.selective_scan.choice import describe

    entry = CATALOGUE.get(config.name)
    spec, reason, scan = None, "", ""
    try:
        encoder = load_encoder(
            config.name, config.weights, config=_arguments(config), revision=config.revision
        )
        spec = encoder.spec
        if uses_scan(encoder):
            scan = describe()
        entry = entry or find_entry(config.name)
    except InputError as error:
        # An encoder that is nothing without weights can be shown, once its name is known.
        if entry is None or any(config[key] is not None for key in ("weights", "config")):
            raise
        reason = str(error)
    if config.json:
        content = {"spec": spec.as_dict() if spec else None, "published": asdict(entry)}
        say(json.dumps(content, indent=2))
    else:
        say(show_page(config.name, entry, spec, reason, scan))
    return 0


def _verify(config: DictConfig) -> int:
    from encoders.verify import verify_encoder

    found = verify_encoder(
        config.name,
        config.weights,
        config=_arguments(config),
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        seed=config.seed,
    )
    if config.json:
        content = asdict(found) | {"spec": found.spec.as_dict(), "passed": found.passed}
        say(json.dumps(content, indent=2))
    else:
        say(verify_page(found, config.dtype, config.seed))
    return 0 if found.passed else 1


def _convert(config: DictConfig) -> int:
    from encoders.canonical import convert

    done = convert(
        config.source,
        config.target,
        name=config.name,
        config=_arguments(config),
        revision=config.revision,
    )
    say(
        f"{done.source} -> {done.target}\n"
        f"{done.encoder}: {done.tensors:,} tensors, {done.numbers:,} numbers, all equal "
        f"(sha256 {done.sha256})"
    )
    if done.target.is_dir():
        say(f"genebold encoders verify {done.encoder} {done.target}")
    return 0


def _build(_: DictConfig) -> int:
    from encoders.selective_scan import library

    say(f"{library.build()}\n{library.describe()}")
    return 0


def _arguments(config: DictConfig) -> dict[str, Any] | None:
    """Return upstream's constructor arguments, written out or in a JSON file."""
    if config.config is None:
        return None
    if not isinstance(config.config, str):
        return plain(config.config)
    path = Path(config.config).expanduser()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        values, reason = None, str(error)
    else:
        reason = f"a {type(values).__name__}"
    if not isinstance(values, dict):
        wanted = "a mapping '{key: value}', or a file with a JSON object {...}"
        raise InputError(Problem("bad-config", f"config={config.config}", reason, wanted))
    return values
