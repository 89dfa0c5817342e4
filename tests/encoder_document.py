"""The files that docs/encoders.md asks its reader to write."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "encoders.md"
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
_COMMANDS = re.compile(r"<!-- commands -->\n```sh\n(.*?)```", re.DOTALL)


def files() -> dict[str, str]:
    """Their text, by name."""
    return dict(_FILE.findall(DOCUMENT.read_text(encoding="utf-8")))


def commands() -> list[str]:
    """The lines that the document has its reader type."""
    (block,) = _COMMANDS.findall(DOCUMENT.read_text(encoding="utf-8"))
    return block.splitlines()


def write_files(folder: Path) -> None:
    """Write the document's files as its reader would."""
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def install(folder: Path) -> None:
    """Write the files, and what ``pip install`` would leave beside them."""
    write_files(folder)
    (point,) = re.findall(r"^(my_encoder = .*)$", files()["pyproject.toml"], re.MULTILINE)
    information = folder / "my_encoder-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-encoder\nVersion: 0.1\n")
    entry = f"[genebold.encoders]\n{point.replace(chr(34), '')}\n"
    (information / "entry_points.txt").write_text(entry)
