"""docs/encoders.md, followed to the letter by a newcomer."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import SMALL
from encoder_document import commands, files, write_files

# What makes the commands quick; each goes to the verbs that have such a setting.
_QUICK = {
    "simulate": [word for word in SMALL if word.startswith("cohort.")],
    "encode": [],
    "align": [word for word in SMALL if word.startswith(("align.", "evaluation."))],
}


def test_the_encoder_is_about_forty_lines() -> None:
    lines = [line for line in files()["my_encoder.py"].splitlines() if line.strip()]
    assert len(lines) <= 50


@pytest.mark.slow
def test_the_commands_of_the_document_align_its_encoder(tmp_path: Path) -> None:
    write_files(tmp_path)
    environment = dict(os.environ)
    for line in commands():
        if line.startswith("export "):
            key, _, value = line.removeprefix("export ").partition("=")
            environment[key] = value
            continue
        program, verb, *words = shlex.split(line)
        assert program == "genebold"
        done = subprocess.run(
            [sys.executable, "-m", "multimodal.cli", verb, *words, *_QUICK[verb]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "mine"
    assert json.loads((run / "metrics.json").read_text())
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    assert "_target_" not in json.dumps(bundle)
    assert list((run / "features" / "brain" / "my_encoder").rglob("*.parquet"))
