"""A hundred subjects from raw files, one of them corrupt, as seen at a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pandas as pd
import pytest
from features.feature_files import write_cohort

from multimodal.latent.table import read_latents


def on_a_terminal(*words: str) -> tuple[int, str]:
    """Run the command as from a terminal of 100 columns; return its exit code and what it says."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "multimodal.cli", *words],
        stdout=theirs, stderr=theirs, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # how Linux says that nobody is there any more
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=60), said.decode()


@pytest.mark.slow
def test_one_corrupt_subject_of_a_hundred(world: Path, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    write_cohort(cohort, subjects=100)
    scan = next((cohort / "derivatives" / "sub-042" / "func").glob("*bold.nii.gz"))
    scan.write_bytes(scan.read_bytes()[:-2000])
    words = ["embed", f"bundle={world / 'bundle'}", f"cohort.dir={cohort}"]

    code, said = on_a_terminal(*words, f"run_dir={tmp_path / 'on'}")
    print(said)
    assert code == 1
    assert "encoding fc: 100%|" in said
    assert "brain latents: 100%|" in said
    assert "98/98" in said
    assert "1 left out because of bad files; the others are done" in said
    assert scan.name in said
    frame, _ = read_latents(tmp_path / "on" / "embedded" / "latents.parquet")
    assert frame["modality"].value_counts().to_dict() == {"gene": 99, "brain": 98}
    failed = pd.read_csv(tmp_path / "on" / "embedded" / "failed.tsv", sep="\t")
    assert failed["participant_id"].tolist() == ["sub-042"]

    code, said = on_a_terminal(*words, f"run_dir={tmp_path / 'stop'}", "on_error=stop")
    print(said)
    assert code == 2
    assert scan.name in said
    assert not (tmp_path / "stop" / "embedded" / "latents.parquet").exists()
    # What comes after the shard with the bad scan was not begun.
    shards = (tmp_path / "stop" / "embedded" / "features" / "brain" / "fc" / "segments").glob("*")
    assert max(int(path.stem) for path in shards if path.suffix == ".parquet") <= 2
