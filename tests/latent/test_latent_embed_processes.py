"""Several processes embed as one does: the same bytes, whichever of them is lost."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_bundle import embed_config

from encoders.errors import InputError
from multimodal.features.crew import Crew
from multimodal.latent.processes import device_of
from multimodal.verbs.embed import run

# What torch alone can divide among threads in ways that change the last bits.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def latents(out: Path) -> bytes:
    return (out / "embedded" / "latents.parquet").read_bytes()


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process makes of the cohort."""
    out = tmp_path_factory.mktemp("alone")
    assert run(embed_config(world, out)) == 0
    return latents(out)


def test_two_processes_leave_the_same_file(
    world: Path, tmp_path: Path, alone: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(embed_config(world, tmp_path, "processes=2")) == 0
    said = capfd.readouterr()
    assert latents(tmp_path) == alone
    assert said.out.count("fingerprint") == 2  # one of them speaks
    assert "Traceback" not in said.err
    assert [path.name for path in (tmp_path / "embedded").glob(".*")] == []


def test_a_killed_process_is_made_up_for(
    world: Path, tmp_path: Path, alone: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill_the_other() -> None:
        deadline = time.monotonic() + 120
        while not (children := multiprocessing.active_children()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        children[0].kill()

    thread = threading.Thread(target=kill_the_other, daemon=True)
    thread.start()
    assert run(embed_config(world, tmp_path, "processes=2")) == 0
    thread.join()
    assert "process 1 of 2 was lost (exit code -9)" in capsys.readouterr().err
    assert latents(tmp_path) == alone


def command(world: Path, out: Path, *words: str) -> list[str]:
    given = [f"bundle={world / 'bundle'}", f"cohort.dir={world / 'cohort'}", f"run_dir={out}"]
    return ["-m", "multimodal.cli", "embed", *given, "block_subjects=3", *words]


@pytest.mark.slow
def test_the_first_process_may_be_killed_and_the_command_goes_on(
    world: Path, tmp_path: Path, alone: bytes
) -> None:
    words = [sys.executable, *command(world, tmp_path, "processes=2")]
    process = subprocess.Popen(words, env=ONE_THREAD, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # it says what it begins with
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    others = children.read_text().split() if children.exists() else []
    assert others or not children.exists()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{other}").exists() for other in others):
        assert time.monotonic() < deadline, "the others outlive the first"
        time.sleep(0.1)
    subprocess.run(words, env=ONE_THREAD, check=True, timeout=300)
    assert latents(tmp_path) == alone


@pytest.mark.slow
def test_torchrun_starts_them(world: Path, tmp_path: Path, alone: bytes) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [sys.executable, *launcher, *command(world, tmp_path)]
    done = subprocess.run(
        words, env=ONE_THREAD, check=False, timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fingerprint") == 2
    assert latents(tmp_path) == alone


def test_another_number_than_was_started_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 were started"):
        run(embed_config(world, tmp_path, "processes=3"))


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    crew = Crew(rank=9, processes=16, local_rank=5)
    assert device_of(crew, "cuda") == "cuda:1"
    assert device_of(crew, "cuda:2") == "cuda:2"
    assert device_of(crew, "cpu") == "cpu"
    assert device_of(Crew(), "cuda") == "cuda"
