"""``genebold encoders list`` and ``genebold encoders show NAME``."""

import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from encoders.errors import InputError, Problem
from multimodal.verbs.console import say, table

ACTIONS = ("list", "show")


def run(config: DictConfig) -> int:
    """List the encoders, or print one's spec as JSON."""
    if config.action not in ACTIONS:
        raise InputError(
            Problem("bad-action", "action", f"'{config.action}'", f"one of {', '.join(ACTIONS)}")
        )
    if config.action == "list":
        _list()
    else:
        _show(config)
    return 0


def _list() -> None:
    from encoders import list_encoders

    dosage = ["dosage", "dna", "varies", 0, "VCF or BCF dosages", "Apache-2.0", "none"]
    rows: list[list[Any]] = [dosage]
    for name in list_encoders():
        spec = _spec_of(name)
        rows.append(
            [
                name,
                spec.modality,
                spec.feature_dim or "varies",
                spec.parameters,
                _input(spec.input),
                spec.code_license,
                spec.weight_license,
            ]
        )
    header = ["name", "side", "features", "parameters", "input", "code", "weights"]
    say(table(rows, header))
    say("\nSizes are those of the published networks. `genebold encoders show NAME` has the rest.")


def _spec_of(name: str) -> Any:
    """Return the spec of the published network, built without memory for its weights."""
    import torch

    from encoders import load_encoder

    with torch.device("meta"):
        try:
            return load_encoder(name, device="meta").spec
        except (NotImplementedError, RuntimeError):
            pass
    return load_encoder(name).spec


def _input(takes: Any) -> str:
    kind = type(takes).__name__
    if kind == "WindowInput":
        limit = f"up to {takes.max_length_bp:,} bp" if takes.max_length_bp else "any length"
        return f"window, {limit}"
    if kind == "ParcelInput":
        parcels = takes.parcels or "any"
        frames = f"{takes.frames} frames" if takes.frames else "whole runs"
        tr = f", TR {takes.tr_s:g} s" if takes.tr_s else ""
        return f"{parcels} parcels, {frames}{tr}"
    size = "x".join(map(str, takes.shape))
    return f"{size} voxels, {takes.frames} frames"


def _show(config: DictConfig) -> None:
    from encoders import load_encoder

    if not config.name:
        raise InputError(
            Problem("missing-name", "name", "none", "a name", "genebold encoders show caduceus_ps")
        )
    upstream = OmegaConf.to_container(config.config, resolve=True) if config.config else None
    encoder = load_encoder(
        config.name,
        config.weights,
        config=upstream,  # type: ignore[arg-type]
        revision=config.revision,
    )
    say(json.dumps(encoder.spec.as_dict(), indent=2))
