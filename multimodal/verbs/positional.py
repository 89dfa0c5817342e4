"""Plain words of ``genebold encoders`` and ``push``, spelt out as the overrides that Hydra takes.

``encoders verify swift best.ckpt`` stands for ``encoders action=verify name=swift
weights=best.ckpt``. File names may hold what Hydra's grammar gives a meaning, an equals sign or a
comma, as those that Lightning makes do.
"""

import re
from collections.abc import Sequence

from encoders.errors import InputError, Problem

WORDS = {
    "list": (),
    "show": ("name",),
    "verify": ("name", "weights"),
    "convert": ("source", "target"),
    "build": (),
}
"""The actions of the verb, and the keys their words stand for, in order."""

_KEYS = (
    *("action", "name", "weights", "revision", "config", "source", "target", "seed", "dtype"),
    *("device", "json", "run_dir", "output_dir", "hydra"),
)
_OVERRIDE = re.compile(rf"(\+\+?|~)?({'|'.join(_KEYS)})([./@:]\S*?)?=|[+~]")
_PUSH_KEYS = ("bundle", "repo", "private", "revision", "message", "run_dir", "output_dir", "hydra")
_PUSH_OVERRIDE = re.compile(rf"(\+\+?|~)?({'|'.join(_PUSH_KEYS)})([./@:]\S*?)?=|[+~]")


PUSH = ("bundle", "repo")
"""The keys that the words of ``genebold push`` stand for, in order."""


def spell_out_push(words: Sequence[str], flags_with_value: Sequence[str]) -> list[str]:
    """Return the words of ``genebold push BUNDLE_DIR OWNER/NAME`` as overrides; see `spell_out`."""
    kept, plain = _divided(words, flags_with_value, _PUSH_OVERRIDE)
    return [*kept, *_named("push", ("push",), PUSH, plain)]


def spell_out(words: Sequence[str], flags_with_value: Sequence[str]) -> list[str]:
    """Return the words with every plain one as an override, flags and overrides as they are.

    Parameters
    ----------
    words : sequence of str
        What follows ``genebold encoders``.
    flags_with_value : sequence of str
        Flags after which a word is the flag's.

    Raises
    ------
    InputError
        More words than the action takes.
    """
    kept, plain = _divided(words, flags_with_value, _OVERRIDE)
    if not plain:
        return kept
    action, *values = plain
    keys = WORDS.get(action)
    if keys is None:  # the verb says what is wrong with it
        return [*kept, f"action={_quoted(action)}"]
    named = _named(f"encoders {action}", ("encoders", action), keys, values)
    return [*kept, f"action={action}", *named]


def _divided(
    words: Sequence[str], flags_with_value: Sequence[str], override: re.Pattern[str]
) -> tuple[list[str], list[str]]:
    """Return flags and overrides, and the plain words."""
    kept: list[str] = []
    plain: list[str] = []
    for place, word in enumerate(words):
        after_flag = place > 0 and words[place - 1] in flags_with_value
        is_plain = not (after_flag or word.startswith("-") or override.match(word))
        (plain if is_plain else kept).append(word)
    return kept, plain


def _named(
    where: str, usage: Sequence[str], keys: Sequence[str], values: Sequence[str]
) -> list[str]:
    """Return plain words as overrides of the keys they stand for."""
    if len(values) > len(keys):
        raise InputError(
            Problem(
                "surplus-word",
                where,
                f"'{values[len(keys)]}'",
                " ".join((*usage, *map(str.upper, keys))),
                "settings are written key=value, names with a space in quotation marks",
            )
        )
    return [f"{key}={_quoted(value)}" for key, value in zip(keys, values, strict=False)]


def _quoted(value: str) -> str:
    """Return a value as Hydra's grammar quotes it: as it is, whatever it holds."""
    escaped = re.sub(r"(\\*)(?='|$)", lambda found: found[1] * 2, value).replace("'", r"\'")
    return f"'{escaped}'"
