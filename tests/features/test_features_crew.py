"""Processes that share a store's shards leave what one alone leaves, whoever did what."""

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch.distributed as dist
from feature_files import BOLD, TinyBrain, TinyDna, tree, write_cohort

from encoders.errors import InputError, Problem
from multimodal.cohort.table import Cohort
from multimodal.features.crew import Crew, Takes
from multimodal.features.encode import GenomeOptions, encode_brains, encode_genomes
from multimodal.features.writer import StoreWriter


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"), subjects=13)


def in_threads(count: int, work: Callable[[Crew], None], lost: set[int] | None = None) -> None:
    """Let threads stand in for processes; fail as the first of them does."""
    meeting, errors = dist.HashStore(), {}

    def part(rank: int) -> None:
        try:
            work(Crew(rank, count, rank, meeting, lambda: lost or set()))
        except SystemExit:
            pass
        except Exception as error:
            errors[rank] = error

    threads = [threading.Thread(target=part, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads)
    for rank in sorted(errors):
        raise errors[rank]


@cache
def encoder_of(kind: str) -> TinyBrain | TinyDna | str:
    """Drawn once: threads share the generator that weights are drawn from."""
    if kind == "brain":
        return TinyBrain(pause_s=0.02)
    return TinyDna(pause_s=0.02) if kind == "dna" else "dosage"


def encode(kind: str, cohort: Cohort, out: Path, crew: Crew | None = None) -> Path:
    encoder = encoder_of(kind)
    if isinstance(encoder, TinyBrain):
        return encode_brains(
            cohort, encoder, BOLD, out, False, batch_size=4, shard_subjects=2, crew=crew
        )
    return encode_genomes(
        cohort, encoder, GenomeOptions(length_bp=150), out, False,
        batch_size=2, shard_sequences=3, crew=crew,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["dna", "brain", "dosage"])
def test_together_they_write_the_same_bytes(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    encode(kind, cohort, tmp_path / "alone")
    written: list[tuple[int, str]] = []
    plain = StoreWriter.write

    def noted(self: StoreWriter, name: str, *rest: object) -> None:
        written.append((threading.get_ident(), name))
        plain(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreWriter, "write", noted)
    in_threads(3, lambda crew: encode(kind, cohort, tmp_path / "together", crew) and None)
    assert tree(tmp_path / "together") == tree(tmp_path / "alone")
    assert len({name for _, name in written}) == len(written)  # nothing twice
    assert len({who for who, _ in written}) == (1 if kind == "dosage" else 3)
    written.clear()
    in_threads(2, lambda crew: encode(kind, cohort, tmp_path / "together", crew) and None)
    assert written == []


def test_the_first_does_what_a_lost_process_took_on() -> None:
    done: list[str] = []

    def part(crew: Crew) -> None:
        def work(takes: Takes, shown: bool) -> None:
            if not crew.is_first:
                taken.append(takes("b"))
                raise SystemExit  # lost with what it has taken on
            started.wait(timeout=30)
            done.extend(piece for piece in "abc" if piece not in done and takes(piece))

        if not crew.is_first:
            try:
                crew.share_out("letters", work)
            finally:
                started.set()
        else:
            crew.share_out("letters", work)

    taken: list[bool] = []
    started = threading.Event()
    in_threads(2, part, lost={1})
    assert taken == [True]
    assert done == ["a", "c", "b"]


def test_bad_input_that_one_of_them_meets_stops_all() -> None:
    problem = Problem("bad", "scan.nii.gz", "half of it", "all of it")
    stopped = threading.Event()

    def part(crew: Crew) -> None:
        if not crew.is_first:
            crew.stop([problem])
            stopped.set()
            return
        stopped.wait(timeout=30)
        crew.share_out("scans", lambda takes, shown: pytest.fail("taken") if takes("a") else None)

    with pytest.raises(InputError) as caught:
        in_threads(2, part)
    assert caught.value.problems == (problem,)


def test_what_the_first_makes_all_get() -> None:
    heard = []
    in_threads(3, lambda crew: heard.append(crew.from_first("sum", lambda: {"rank": crew.rank})))
    assert heard == [{"rank": 0}] * 3
