"""Children of a process that has imported the large libraries, for tests that start programs.

A program of its own spends ten to twenty seconds on importing torch, Lightning and nilearn. These
children start with them imported, and with nothing of this project, and share nothing with the
tests.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(
    [
        "hydra",
        "lightning.pytorch",
        "nilearn.image",
        "nilearn.signal",
        "pyarrow.parquet",
        "sklearn.cluster",
        "torch.utils.tensorboard",
    ]
)


def run_program(
    program: Callable[[Sequence[str]], int],
    words: Sequence[str],
    cwd: Path | None = None,
    timeout_s: float = 600,
) -> "subprocess.CompletedProcess[str]":
    """Run a program's function in a process of its own, and capture what it says."""
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        process = WARM.Process(target=_run, args=(program, words, cwd, dict(os.environ), said))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(words), timeout_s)
        out, err = (path.read_text() if path.exists() else "" for path in said)
        return subprocess.CompletedProcess(list(words), process.exitcode, out, err)


def _run(
    program: Callable[[Sequence[str]], int],
    words: Sequence[str],
    cwd: Path | None,
    environment: Mapping[str, str],
    said: Sequence[Path],
) -> None:
    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    sys.exit(program(list(words)))
