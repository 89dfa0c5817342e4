"""Asked to stop, a fit saves and ends; started again, it ends where an undisturbed one does."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_world import make_world
from warm import WARM

from multimodal.align.aligner import Aligner
from multimodal.align.fit import FitResult, fit
from multimodal.align.interruption import Interrupted, StopRequest
from multimodal.align.module import AlignModule
from multimodal.align.options import AlignOptions, SideOptions
from multimodal.align.running import TrainerOptions

# Five batches an epoch, of dropout, of segments drawn anew, and of one stratum each.
OPTIONS = AlignOptions(
    epochs=4,
    hidden_dim=32,
    latent_dim=16,
    patience=None,
    batch_size=16,
    augment_segments=True,
    batch_strata=("site",),
)
STEPS = 20
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Whoever starts the tests in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def train(
    out_dir: Path | None,
    stop: StopRequest | None = None,
    running: TrainerOptions | None = None,
    *,
    dropout: float = 0.5,
    **changes: Any,
) -> FitResult:
    gene, brain = make_world(subjects=100)
    split = np.array(["train"] * 70 + ["validation"] * 30)
    strata = np.array(["leeds", "oxford"])[np.arange(100) % 2]
    side = SideOptions(dropout=dropout)
    options = replace(OPTIONS, gene=side, brain=side, **changes)
    return fit(
        gene, brain, split, np.arange(100), None, options,
        out_dir=out_dir, progress=False, strata=strata, running=running, stop=stop,
    )  # fmt: skip


def assert_same(found: FitResult, expected: FitResult) -> None:
    assert found.history.equals(expected.history)
    assert found.best_epoch == expected.best_epoch
    for name, value in expected.aligner.state_dict().items():
        assert torch.equal(found.aligner.state_dict()[name], value), name


@pytest.fixture(scope="module")
def undisturbed() -> FitResult:
    return train(None)


def send_at_steps(patch: pytest.MonkeyPatch, when: dict[int, signal.Signals]) -> None:
    """Send this process a signal in the middle of each of some steps, counted over restarts."""
    step, plain = 0, AlignModule.training_step

    def counted(self: AlignModule, *batch: object) -> torch.Tensor:
        nonlocal step
        step += 1
        if step in when:
            os.kill(os.getpid(), when[step])
        return plain(self, *batch)  # type: ignore[arg-type]

    patch.setattr(AlignModule, "training_step", counted)


@pytest.mark.parametrize("every", [1, 3])
def test_a_fit_that_was_asked_to_stop_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: FitResult, every: int
) -> None:
    points = np.random.default_rng(every).choice(np.arange(1, STEPS), 4, replace=False)
    # The end of an epoch, and its beginning.
    points = np.union1d(points, [5, 6])
    when = {int(point): SIGNALS[place % len(SIGNALS)] for place, point in enumerate(points)}
    send_at_steps(monkeypatch, when)
    stops = []
    for _ in range(len(when) + 1):
        stop = StopRequest()
        try:
            with stop.listening():
                found = train(tmp_path, stop, checkpoint_every=every)
            break
        except Interrupted as interrupted:
            stops.append(str(interrupted))
            assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert len(stops) == len(when)
    assert stops[0].startswith("stopped by SIGTERM: training is saved after ")
    assert_same(found, undisturbed)


def test_a_signal_in_the_last_step_ends_a_finished_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: FitResult
) -> None:
    send_at_steps(monkeypatch, {STEPS: signal.SIGUSR1})
    stop = StopRequest()
    with pytest.raises(Interrupted, match="SIGUSR1"), stop.listening():
        train(tmp_path, stop)
    assert_same(train(tmp_path), undisturbed)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_training_a_signal_ends_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name), StopRequest().listening():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_second_ctrl_c_does_not_wait() -> None:
    stop = StopRequest()
    with stop.listening(), pytest.raises(Interrupted) as first:
        signal.raise_signal(signal.SIGINT)
    assert first.value.exit_code == 130
    with stop.listening(), pytest.raises(Interrupted, match="the last checkpoint is kept"):
        signal.raise_signal(signal.SIGINT)


def test_who_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest().listening():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_wait_for_whoever_takes_over() -> None:
    stop = StopRequest()
    seen: list[str | None] = []

    def train() -> None:
        with stop.listening(), stop.noting():
            signal.signal(signal.SIGTERM, lambda *_: seen.append("by another"))
            # To this thread: any other that does not block it may take one sent to the process.
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            seen.append(stop.by)
            stop.take_over()
            seen.append(stop.by)

    with pytest.raises(Interrupted):
        train()
    assert seen == [None, "SIGTERM"]


EXITS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGKILL: -signal.SIGKILL}
EPOCHS = 24


def train_in_child(out_dir: Path, ready: Connection, at_once: bool) -> None:
    """Train as a process of its own does, and save what was learned; say when it has begun."""
    torch.set_num_threads(1)
    stop, plain = StopRequest(), AlignModule.training_step

    def begun(self: AlignModule, *batch: object) -> torch.Tensor:
        ready.send_bytes(b"training")
        AlignModule.training_step = plain  # type: ignore[method-assign]
        return plain(self, *batch)  # type: ignore[arg-type]

    if not at_once:
        AlignModule.training_step = begun  # type: ignore[method-assign]
    try:
        with stop.listening():
            if at_once:
                ready.send_bytes(b"preparing")
            result = train(out_dir, stop, epochs=EPOCHS)
            result.aligner.save(out_dir / "towers.safetensors")
            os._exit(0)  # at once: a signal while Python takes its leave is none in training
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)


def start_and_wait(out_dir: Path, at_once: bool) -> BaseProcess:
    """Start a child, and wait until it trains, or only until it prepares to."""
    here, there = WARM.Pipe()
    process = WARM.Process(target=train_in_child, args=(out_dir, there, at_once))
    process.start()
    there.close()
    with suppress(EOFError):  # it had trained before
        here.recv_bytes()
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", EXITS)
def test_ten_signals_at_random_moments_change_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    random = np.random.default_rng(int(number))
    begun = time.perf_counter()
    whole = train(None, epochs=EPOCHS)
    # Ten of them in one course of training, more or less.
    longest_s = (time.perf_counter() - begun) / 4
    sent = courses = 0
    while sent < 10:
        courses += 1
        assert courses < 20, "hardly a signal comes before the end"
        folder = tmp_path / str(courses)
        code = None
        while code != 0:
            process = start_and_wait(folder, at_once=sent % 5 == 4)
            if sent < 10:
                time.sleep(random.uniform(0.0, longest_s))
                with suppress(ProcessLookupError):  # it has finished
                    os.kill(process.pid, number)
            process.join()
            code = process.exitcode
            assert code in (0, EXITS[number])
            sent += code != 0
        resumed = Aligner.load(whole.aligner.config(), folder / "towers.safetensors")
        for name, value in whole.aligner.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name


def test_signals_that_others_handle_are_left_to_them() -> None:
    """Submitit's jobs pass over SIGTERM and requeue themselves at another signal."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with StopRequest().listening():
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
