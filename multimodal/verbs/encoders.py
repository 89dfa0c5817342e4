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
    from encoders.catalogue import CATALOGUE
    from encoders.registry import list_encoders

    rows: list[list[Any]] = [
        [
            name,
            entry.modality,
            entry.feature_dim or "varies",
            f"{entry.parameters:,}",
            entry.takes,
            entry.code_license,
            entry.weight_license,
        ]
        for name, entry in CATALOGUE.items()
    ]
    rows += [[name, *[""] * 6] for name in list_encoders() if name not in CATALOGUE]
    header = ["name", "side", "features", "parameters", "input", "code", "weights"]
    say(table(rows, header))
    say(
        "\nSizes and licences are those of the published networks. "
        "`genebold encoders show NAME` has the rest."
    )


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
