"""From a composed configuration to the toolkit's own option objects."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from encoders.errors import InputError, Problem
from multimodal.cohort.table import CohortPaths

T = TypeVar("T")


def plain(section: DictConfig | None) -> dict[str, Any]:
    """Return a config section as plain Python values, everything resolved."""
    if section is None:
        return {}
    values = OmegaConf.to_container(section, resolve=True, throw_on_missing=True)
    return typing.cast(dict[str, Any], values)


def options(cls: type[T], values: Mapping[str, Any], key: str) -> T:
    """Build the dataclass `cls` from a config section.

    Parameters
    ----------
    cls : type
        A dataclass of options.
    values : mapping
        The section; lists become tuples where the field is a tuple.
    key : str
        The section's name, for the error.

    Raises
    ------
    InputError
        Unknown keys, or values of another type than the field's, all of them at once.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    problems = []
    used: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            problems.append(
                Problem(
                    "unknown-key", f"{key}.{name}", "no such key", f"one of {', '.join(fields)}"
                )
            )
            continue
        converted, fits = _convert(value, hints[name])
        if not fits:
            where = f"{key}.{name}" if key else name
            problems.append(Problem("bad-value", where, _shown(value), in_words(hints[name])))
        used[name] = converted
    if problems:
        raise InputError(problems)
    try:
        return cls(**used)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        problem = Problem("bad-value", key, str(error), "settings that fit together")
        raise InputError(problem) from error


def _convert(value: Any, hint: Any) -> tuple[Any, bool]:
    """Return `value` as the type `hint` wants it, and whether it fits."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            converted, fits = _convert(value, part)
            if fits:
                return converted, True
        return value, False
    if hint is type(None):
        return value, value is None
    if origin is typing.Literal:
        return value, value in typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return value, False
        parts = [_convert(item, typing.get_args(hint)[0]) for item in value]
        return tuple(part for part, _ in parts), all(fits for _, fits in parts)
    if origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        return value, isinstance(value, Mapping)
    if origin is list:
        return value, isinstance(value, list)
    if hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        return (float(value) if fits else value), fits
    if hint is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    if hint is Path:
        return (Path(value), True) if isinstance(value, str) else (value, False)
    if isinstance(hint, type):
        return value, isinstance(value, hint)
    return value, True


_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    type(None): ("null", "null"),
}


def in_words(hint: Any) -> str:
    """Return what a type wants, as one says it: ``a whole number, or null``."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(in_words(part) for part in parts)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (tuple, list):
        fixed = origin is tuple and Ellipsis not in parts
        many = _WORDS[parts[0]][1] if parts[0] in _WORDS else "values"
        return f"a list of {len(parts)} {many}" if fixed else f"a list of {many}"
    if hint in _WORDS:
        return _WORDS[hint][0]
    return "a section of settings"


def _shown(value: Any) -> str:
    """Return a value as a configuration writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def cohort_paths(section: DictConfig) -> CohortPaths:
    """Return the cohort's files: those named, else the standard names in ``cohort.dir``.

    Raises
    ------
    InputError
        No such folder.
    """
    folder = section.dir
    if folder is not None and not Path(folder).is_dir():
        raise InputError(
            Problem(
                "cohort-folder",
                str(folder),
                "no such folder",
                "a cohort folder, with participants.tsv in it",
                "say where yours lies: cohort.dir=DIR",
            )
        )
    standard = CohortPaths() if folder is None else CohortPaths.from_dir(folder)
    return standard.with_paths(**named_paths(section))


def named_paths(section: DictConfig) -> dict[str, Path]:
    """Return the files that a ``cohort`` section names one by one."""
    values = plain(section)
    known = (field.name for field in dataclasses.fields(CohortPaths))
    return {name: Path(values[name]) for name in known if values.get(name) is not None}


def flag(value: Any, key: str) -> bool:
    """Return a setting that is true or false.

    Raises
    ------
    InputError
        It is neither; YAML 1.2 reads ``no`` and ``off`` as text.
    """
    if not isinstance(value, bool):
        raise InputError(Problem("bad-value", key, repr(value), "true or false"))
    return value
