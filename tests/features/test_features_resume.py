"""A run killed at any moment resumes and ends with the same store, byte for byte."""

import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from feature_files import BOLD, TinyBrain, TinyDna, tree, write_cohort

from encoders.errors import InputError
from multimodal.cohort.table import CohortPaths, read_cohort
from multimodal.features.dna import DnaPlan
from multimodal.features.encode import GenomeOptions, encode_brains, encode_genomes
from multimodal.features.read import read_gene_features
from multimodal.features.writer import StoreWriter

CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, subjects=9)
    return folder


def encode_dna(cohort: Path, out: Path, pause_s: float = 0) -> Path:
    return encode_genomes(
        read_cohort(CohortPaths.from_dir(cohort)),
        TinyDna(pause_s=pause_s),
        GenomeOptions(length_bp=150),
        out,
        False,
        batch_size=2,
        shard_sequences=3,
    )


def encode_brain(cohort: Path, out: Path, pause_s: float = 0) -> Path:
    return encode_brains(
        read_cohort(CohortPaths.from_dir(cohort)),
        TinyBrain(pause_s=pause_s),
        BOLD,
        out,
        False,
        batch_size=4,
        shard_subjects=2,
    )


def encode_dosage(cohort: Path, out: Path) -> Path:
    return encode_genomes(read_cohort(CohortPaths.from_dir(cohort)), "dosage", None, out, False)


def run_in_process(target: Callable[..., object], *arguments: object) -> multiprocessing.Process:
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process  # type: ignore[return-value]


def shards(folder: Path) -> int:
    return len(list(folder.rglob("[0-9]*.parquet")))


@pytest.mark.parametrize(("encode", "pause_s"), [(encode_dna, 0.02), (encode_brain, 0.04)])
def test_killed_at_random_moments(
    folder: Path, tmp_path: Path, encode: Callable[..., Path], pause_s: float
) -> None:
    undisturbed = tree(encode(folder, tmp_path / "whole"))
    whole, out = shards(tmp_path / "whole"), tmp_path / "killed"
    rng = np.random.default_rng(5)
    left = []
    for _ in range(4):
        before = shards(out)
        process = run_in_process(encode, folder, out, pause_s)
        while process.is_alive() and shards(out) == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 2 * pause_s))
        process.kill()
        process.join()
        left.append(shards(out))
    assert sum(0 < count < whole for count in left) >= 2
    assert tree(encode(folder, out)) == undisturbed


def die_at_step(encode: Callable[..., Path], cohort: Path, out: Path, step: int) -> None:
    """Run and die as by SIGKILL at the step-th renaming, before it if even, after it if odd."""
    rename, count = os.replace, 0

    def counted(self: Path, target: Path) -> Path:
        nonlocal count
        if count == step // 2 and step % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(self, target)
        if count == step // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return target

    Path.replace = counted  # type: ignore[method-assign,assignment]
    encode(cohort, out)


@pytest.mark.parametrize("encode", [encode_dna, encode_brain, encode_dosage])
def test_killed_around_renamings(folder: Path, tmp_path: Path, encode: Callable[..., Path]) -> None:
    undisturbed = tree(encode(folder, tmp_path / "whole"))
    steps = 2 * sum(name != ".lock" for name in undisturbed)
    for step in (0, 1, 3, steps // 2, steps - 2, steps - 1):
        out = tmp_path / f"step{step}"
        process = run_in_process(die_at_step, encode, folder, out, step)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert tree(encode(folder, out)) == undisturbed


def test_same_input_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert tree(encode_dna(folder, tmp_path / "a")) == tree(encode_dna(folder, tmp_path / "b"))


def test_a_cut_off_store_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    process = run_in_process(die_at_step, encode_dna, folder, tmp_path, 7)
    process.join()
    with pytest.raises(InputError, match="genebold encode"):
        read_gene_features(tmp_path / "dna" / "tiny_dna")


def test_one_run_at_a_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "dna" / "tiny_dna"
    with StoreWriter(store, {}):
        (store / "fingerprint.json").unlink()
        monkeypatch.setattr(DnaPlan, "survey", lambda *_: pytest.fail("read before the lock"))
        with pytest.raises(InputError, match="another run is writing these features"):
            encode_dna(folder, tmp_path)
        monkeypatch.undo()
    encode_dna(folder, tmp_path)


def test_without_locks_it_still_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert (encode_dna(folder, tmp_path) / "complete.json").exists()
