"""``genebold VERB --help``: every setting of a verb with its default and what it means.

What a setting means is written once, as the comment behind it in its configuration file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

_LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:# ?(?P<comment>.*))?$")
_MORE = re.compile(r"^ +# ?(?P<comment>.*)$")
_PACKAGE = re.compile(r"^# @package (\S+)")
_COMMENT_COLUMN = 36
# Files that other root configs are made of.
_PARTS = ("base", "pipeline", "training")

# A verb reads a cohort or simulates one; to choose the other would not make sense.
_SETTLED = ("cohort",)

_FOOTER = """\
Change any key: genebold {verb} key=value ...
--cfg job prints the settings as they would be used; --multirun key=a,b runs each in turn."""
_FOOTER_GROUPS = """
A group takes the name of a choice, whose settings --help then shows: brain=swift --help"""


def settings_page(
    verb: str, overrides: Sequence[str], config_dir: Path, own_dir: str | None = None
) -> str:
    """Return the page of a verb's settings, as the overrides make them.

    Parameters
    ----------
    verb : str
        The root config's name.
    overrides : sequence of str
    config_dir : Path
        The folder of the root configs.
    own_dir : str, optional
        The folder given by ``--config-dir``.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    words = list(overrides)
    if own_dir is not None:
        words.append(f"hydra.searchpath=[file://{Path(own_dir).absolute()}]")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir.absolute()), version_base="1.3"):
        config = compose(verb, overrides=words, return_hydra_config=True)
    folders = [folder for folder in (config_dir, own_dir and Path(own_dir)) if folder]
    choices = {
        group: choice
        for group, choice in config.hydra.runtime.choices.items()
        if not group.startswith("hydra/")
    }
    comments = _comments(verb, choices, folders)
    values: Any = OmegaConf.to_container(_without_hydra(config), resolve=False)
    groups = list(_group_lines(choices, folders))
    parts = [str(config.hydra.help.header).strip()]
    if groups:
        parts.append("\n".join(["Groups (group=choice), the choice in use first", "", *groups]))
    parts.append("\n".join(["Settings", "", *_lines(values, comments)]))
    parts.append(_FOOTER.format(verb=verb) + (_FOOTER_GROUPS if groups else ""))
    return "\n\n".join(parts) + "\n"


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _group_lines(choices: Mapping[str, Any], folders: Sequence[Path]) -> Iterator[str]:
    """Yield the groups that leave a choice, one a line."""
    for group, chosen in sorted(choices.items()):
        found = {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
        others = sorted(found - {chosen})
        if others and group not in _SETTLED:
            yield f"  {group}: {', '.join([str(chosen or 'none'), *others])}"


def _comments(
    verb: str, choices: Mapping[str, Any], folders: Sequence[Path]
) -> dict[tuple[str, ...], str]:
    """Return what the files in use say behind each key, by the key's path."""
    names = [*_PARTS, verb, *(f"{group}/{choice}" for group, choice in choices.items() if choice)]
    comments: dict[tuple[str, ...], str] = {}
    for name in names:
        for folder in folders:
            file = folder / f"{name}.yaml"
            if file.is_file():
                comments.update(read_comments(file.read_text(), name.rpartition("/")[0]))
    return comments


def read_comments(text: str, package: str) -> dict[tuple[str, ...], str]:
    """Return the comment behind each key of a configuration file, by the key's whole path.

    Parameters
    ----------
    text : str
        The file.
    package : str
        Where its keys go, unless its first line says otherwise.
    """
    named = _PACKAGE.match(text)
    root = package if named is None else named[1]
    above = () if root in ("", "_global_") else tuple(re.split(r"[./]", root))
    open_keys: list[tuple[int, str]] = []
    comments: dict[tuple[str, ...], str] = {}
    path: tuple[str, ...] = ()
    for line in text.splitlines():
        more = _MORE.match(line)
        if more is not None and path in comments:
            comments[path] += f" {more['comment'].strip()}"
            continue
        found = _LINE.match(line)
        if found is None:
            path = ()
            continue
        indent = len(found["indent"])
        open_keys = [(depth, key) for depth, key in open_keys if depth < indent]
        open_keys.append((indent, found["key"]))
        path = (*above, *(key for _, key in open_keys))
        if found["comment"]:
            comments[path] = found["comment"].strip()
    return comments


def _lines(
    values: Mapping[str, Any], comments: Mapping[tuple[str, ...], str], above: tuple[str, ...] = ()
) -> Iterator[str]:
    for key, value in values.items():
        path = (*above, str(key))
        shown = f"{'  ' * len(above)}{key}:"
        nested = isinstance(value, Mapping) and bool(value)
        if not nested:
            shown += f" {_written(value)}"
        comment = comments.get(path)
        yield f"{shown + '  ':<{_COMMENT_COLUMN}}# {comment}" if comment else shown
        if nested:
            yield from _lines(value, comments, path)


def _written(value: Any) -> str:
    """Return a value as a command line would set it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
