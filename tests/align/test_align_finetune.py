"""Encoders inside the training step: where it begins, what learns, and how fast."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from distributed_training import Step
from features.feature_files import TinyBrain
from finetune_cohort import SUBJECTS, Stored, align_options, module_of, split, store
from process_group import found_by, run_in_processes
from torch import Tensor

from encoders.errors import InputError
from multimodal.align.data import Batch, EpochRows, EpochSampler
from multimodal.align.finetune.delta import apply_delta
from multimodal.align.finetune.module import FineTuneModule
from multimodal.align.fit import FitResult, fit
from multimodal.align.keeping import Keeper

# Of float64; gradients of vicreg reach thousands, where 1e-10 is less than their last bits.
EXACT = {"rtol": 1e-12, "atol": 1e-10}
RELATIVES = np.arange(SUBJECTS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store(tmp_path_factory.mktemp("real"), "caduceus_ps", "brainlm_nystromformer")


def batch_of(data: Any, rows: range = range(SUBJECTS)) -> Batch:
    return data[EpochRows(0, np.array(rows))]


def latents(module: FineTuneModule, batch: Batch) -> tuple[Tensor, Tensor]:
    return module._encode(*module._inputs(batch))


def step(stored: Stored, **changes: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """One training step's loss and the gradients it leaves."""
    module, data = module_of(stored, align_options(**changes))
    loss = module.training_step(batch_of(data, range(10)), 0)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


# The tiny networks have no layer that LoRA could change.
@pytest.mark.parametrize(("kind", "method"), [("tiny", "full"), ("real", "full"), ("real", "lora")])
def test_the_first_step_begins_where_frozen_training_does(
    kind: str, method: str, tiny: Stored, real: Stored
) -> None:
    stored = tiny if kind == "tiny" else real
    options = align_options(tuning={"method": method})
    module, data = module_of(stored, options)
    batch = batch_of(data)
    pooled = stored.tuned(options.fine_tune)
    frozen = super(FineTuneModule, module)._encode(batch.gene.double(), batch.brain.double())
    for side, found in zip(("dna", "brain"), latents(module, batch), strict=True):
        # Stored features are float32.
        expected = frozen[side == "brain"]
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)
        assert pooled[side](np.arange(2)).dtype == torch.float64
    # A subject's latents do not depend on who else is in the batch, nor on their order.
    some = batch_of(data, range(7, 3, -1))
    for found, whole in zip(latents(module, some), latents(module, batch), strict=True):
        torch.testing.assert_close(found, whole[4:8].flip(0), **EXACT)


def test_carriers_of_the_reference_differ_from_it_by_nothing(tiny: Stored) -> None:
    part = tiny.tuned(align_options(("dna",)).fine_tune)["dna"]
    nothing = (tiny.gene.index == 0).all(axis=2)
    assert nothing.any()
    pooled = part(np.arange(SUBJECTS)).detach().numpy()
    assert (pooled[nothing] == 0).all()
    assert (pooled[~nothing] != 0).any(axis=-1).all()


def test_windows_that_are_not_kept_are_read_for_each_batch(tiny: Stored) -> None:
    part = tiny.tuned(align_options(("dna",)).fine_tune)["dna"]
    kept = part(np.array([3, 11, 5]))
    part.inputs = replace(part.inputs, kept={})
    torch.testing.assert_close(part(np.array([3, 11, 5])), kept, **EXACT)
    brain = tiny.tuned(align_options(("brain",)).fine_tune)["brain"]
    whole = brain(np.array([4, 1]))
    asked: list[Any] = []
    prepare = brain.inputs.prepare
    again = replace(
        brain.inputs, kept_bytes=0, prepare=lambda run: asked.append(run) or prepare(run)
    )
    brain.inputs = again
    torch.testing.assert_close(brain(np.array([4, 1])), whole, **EXACT)
    # A run's segments are prepared together.
    assert asked == [run for subject in (4, 1) for run in again.runs[subject]]


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2},
        pytest.param({"accumulate": 4, "loss": "vicreg"}, marks=pytest.mark.slow),
        {"gradient_checkpointing": True},
    ],
)
def test_parts_give_the_update_of_the_whole(real: Stored, changes: dict[str, Any]) -> None:
    other = {name: value for name, value in changes.items() if name == "loss"}
    whole, gradients = step(real, **other)
    cached, found = step(real, **changes)
    torch.testing.assert_close(cached, whole, **EXACT)
    assert found.keys() == gradients.keys()
    assert any(name.startswith("encoders.dna.") for name in gradients)
    assert any(name.startswith("encoders.brain.") for name in gradients)
    for name, value in gradients.items():
        torch.testing.assert_close(found[name], value, **EXACT)


def test_gradients_are_those_of_the_loss(tiny: Stored) -> None:
    module, data = module_of(tiny, align_options())
    batch = batch_of(data, range(10))
    module.training_step(batch, 0).backward()
    for part in module.tuned().values():
        weight = part.trained["weight"]
        place = tuple(0 for _ in weight.shape)
        slope, size = float(weight.grad[place]), 1e-6
        with torch.no_grad():
            weight[place] += size
            above = module.training_step(batch, 0)
            weight[place] -= 2 * size
            below = module.training_step(batch, 0)
            weight[place] += size
        assert slope == pytest.approx(float(above - below) / (2 * size), rel=1e-5, abs=1e-9)
        assert slope != 0


def learned(stored: Stored, **changes: Any) -> set[str]:
    module, _ = module_of(stored, align_options(**changes))
    return {n for n, p in module.named_parameters() if p.requires_grad and "encoders." in n}


def test_only_what_is_wanted_learns(real: Stored) -> None:
    adapters = learned(real, tuning={"method": "lora", "rank": 2})
    assert adapters
    assert all("lora_" in name for name in adapters)
    # Of these layers only the weights are taken: an adapter there would change nothing.
    assert not any("dt_proj" in name for name in adapters)
    _, gradients = step(real, tuning={"method": "lora", "rank": 2})
    assert {name for name in gradients if "encoders." in name} == adapters
    assert all(gradients[name].any() for name in adapters if "lora_B" in name)
    some = learned(real, sides=("dna",), tuning={"method": "lora", "targets": ("in_proj",)})
    assert some
    assert all(".in_proj.lora_" in name for name in some)
    everything = learned(real, sides=("brain",))
    assert any("layernorm" in name for name in everything)
    _, gradients = step(real, sides=("brain",))
    assert {name for name in gradients if "encoders." in name} == everything


def weights(result: FitResult, encoders: dict[str, Any]) -> dict[str, Tensor]:
    found = {f"towers.{n}": v for n, v in result.aligner.state_dict().items()}
    return found | {f"{s}.{n}": v for s, e in encoders.items() for n, v in e.delta().items()}


def run(stored: Stored, options: Any, **where: Any) -> tuple[FitResult, dict[str, Tensor]]:
    encoders = stored.tuned(options.fine_tune)
    result = fit(
        stored.gene, stored.brain, split(), RELATIVES, None, options,
        encoders=encoders, progress=False, **where,
    )  # fmt: skip
    return result, weights(result, encoders)


def test_encoders_learn_and_equal_seeds_give_equal_weights(tiny: Stored) -> None:
    options = align_options(batch_size=5, augment_segments=True, tuning={"learning_rate": 1e-2})
    frozen = replace(options, fine_tune=type(options.fine_tune)())
    result, first = run(tiny, options)
    assert any(v.any() for n, v in first.items() if n.startswith("dna."))
    assert any(v.any() for n, v in first.items() if n.startswith("brain."))
    _, second = run(tiny, options)
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = fit(tiny.gene, tiny.brain, split(), RELATIVES, None, frozen, progress=False)
    assert alone.history["val_loss"][0] == pytest.approx(result.history["val_loss"][0], rel=1e-4)


def test_the_best_epoch_is_kept_of_encoders_too(tiny: Stored, monkeypatch: Any) -> None:
    seen = []
    keep = Keeper.on_train_epoch_end

    def record(self: Keeper, trainer: Any, module: Any) -> None:
        keep(self, trainer, module)
        seen.append({n: v.detach().clone() for n, v in module.kept_state().items()})

    monkeypatch.setattr(Keeper, "on_train_epoch_end", record)
    options = align_options(epochs=6, schedule="constant", tuning={"learning_rate": 0.3})
    result, found = run(tiny, options)
    best = int(result.history["val_loss"].idxmin())
    assert 0 < result.best_epoch == best < 6
    kept = seen[best - 1]["encoders.brain.encoder.backbone.weight"]
    start = TinyBrain().double().backbone.weight.detach()
    torch.testing.assert_close(found["brain.weight:full"], kept - start, **EXACT)


def test_a_frozen_start_leaves_encoders_and_their_averages_alone(
    tiny: Stored, monkeypatch: Any
) -> None:
    seen = []
    keep = Keeper.on_train_epoch_end

    def record(self: Keeper, trainer: Any, module: Any) -> None:
        keep(self, trainer, module)
        weight = module.tuned()["brain"].trained["weight"]
        seen.append((weight.detach().clone(), weight in trainer.optimizers[0].state))

    monkeypatch.setattr(Keeper, "on_train_epoch_end", record)
    tuning = {"frozen_epochs": 2, "learning_rate": 1e-2}
    run(tiny, align_options(epochs=4, tuning=tuning))
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[1][0], seen[2][0])
    assert [known for _, known in seen] == [False, False, True, True]


class Killed(BaseException):
    """Stands in for a power cut within one process."""


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_an_interrupted_fit_ends_with_the_same_weights(
    method: str, tiny: Stored, real: Stored, tmp_path: Path, monkeypatch: Any
) -> None:
    stored = tiny if method == "full" else real
    tuning = {"method": method, "learning_rate": 1e-2, "frozen_epochs": 1}
    options = align_options(batch_size=5, epochs=4, tuning=tuning)
    undisturbed, whole = run(stored, options)
    keep = Keeper.on_train_epoch_end
    with monkeypatch.context() as patch:

        def cut(self: Keeper, trainer: Any, module: Any) -> None:
            keep(self, trainer, module)
            if trainer.current_epoch == 2:
                raise Killed

        patch.setattr(Keeper, "on_train_epoch_end", cut)
        with pytest.raises(Killed):
            run(stored, options, out_dir=tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    if method == "lora":
        assert all("lora_" in name for name in saved if name.startswith("encoders."))
    resumed, found = run(stored, options, out_dir=tmp_path)
    assert resumed.history.equals(undisturbed.history)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize(("kind", "method"), [("tiny", "full"), ("real", "full"), ("real", "lora")])
def test_what_was_learned_goes_over_to_a_fresh_encoder(
    kind: str, method: str, tiny: Stored, real: Stored
) -> None:
    from finetune_cohort import encoder

    stored = tiny if kind == "tiny" else real
    options = align_options(tuning={"method": method})
    module, _ = module_of(stored, options)
    torch.manual_seed(1)
    with torch.no_grad():
        for part in module.tuned().values():
            for parameter in part.trained.values():
                parameter += 0.05 * torch.randn_like(parameter)
    for side, part in module.tuned().items():
        fresh = encoder(side, stored.kinds[side])
        before = fresh.spec.weights_sha256
        apply_delta(fresh, part.delta(), "test")
        assert fresh.spec.weights_sha256 != before
        with torch.no_grad():
            expected = part(np.arange(4))
            found = part.inputs.pooled(fresh, np.arange(4))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
        bad = dict(part.delta())
        name = next(iter(bad))
        bad[name] = bad[name][..., :1].repeat_interleave(2, dim=-1)[..., :0]
        with pytest.raises(InputError, match="test"):
            apply_delta(fresh, {**bad, "nowhere:full": torch.ones(1)}, "test")


def test_bfloat16_is_for_training_only(real: Stored) -> None:
    options = align_options(bf16=True)
    part = real.tuned(options.fine_tune)["brain"].float()
    exact = real.tuned(align_options().fine_tune)["brain"].float()
    rows = np.arange(3)
    reduced = part(rows)
    assert not torch.equal(reduced, exact(rows))
    torch.testing.assert_close(reduced, exact(rows), rtol=0.1, atol=0.05)
    with torch.no_grad():
        assert torch.equal(part(rows), exact(rows))
    reduced.sum().backward()


def test_what_cannot_be_tuned_is_refused(tiny: Stored) -> None:
    tuned = align_options(tuning={"method": "lora"}).fine_tune
    with pytest.raises(InputError, match="calls no linear layer"):
        tiny.tuned(replace(tuned, sides=("dna",)))
    checkpointed = align_options(gradient_checkpointing=True).fine_tune
    with pytest.raises(InputError, match="no layers that can be recomputed"):
        tiny.tuned(checkpointed)


def test_targets_that_are_not_there_are_named(real: Stored) -> None:
    options = align_options(("dna",), tuning={"method": "lora", "targets": ("in_proj", "dt_proj")})
    with pytest.raises(InputError, match="'dt_proj' names no linear layer that is called"):
        real.tuned(options.fine_tune)


def train(stored: Stored, tuning: dict[str, Any], rank: int = 0, processes: int = 1) -> Any:
    """A few steps of plain SGD, and the weights after them."""
    module, data = module_of(stored, align_options(tuning=tuning, accumulate=2))
    wrapped: Any = Step(module)
    if processes > 1:
        wrapped = torch.nn.parallel.DistributedDataParallel(wrapped)
    learning = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.05)
    sampler = EpochSampler(np.arange(10), 3, 0, rank, processes)
    for index, wanted in zip(range(4), sampler, strict=False):
        optimizer.zero_grad()
        wrapped(data[wanted], index).backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
    return {name: value.detach().clone() for name, value in module.kept_state().items()}


def train_as_one_of(rank: int, processes: int, stored: Stored, tuning: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=processes)
    torch.save(train(stored, tuning, rank, processes), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [{}, {"frozen_epochs": 1}])
def test_three_processes_train_as_one(tiny: Stored, tuning: Any, tmp_path: Path) -> None:
    # Of batches of two, one of the processes has no row at all.
    processes = 3
    run_in_processes(processes, train_as_one_of, tiny, tuning, tmp_path)
    expected = train(tiny, tuning)
    for found in found_by(processes, tmp_path):
        for name, value in expected.items():
            if value.is_floating_point():
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)
