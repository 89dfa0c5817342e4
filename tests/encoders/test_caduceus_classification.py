"""Upstream's sequence classifier: poolings, conjoined strands, losses, and what it is read from."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from caduceus_cases import over_cases
from torch import Tensor

from encoders.caduceus.checkpoint import save_network
from encoders.caduceus.classification import (
    POOLINGS,
    CaduceusForSequenceClassification,
    ClassifierOptions,
    classification_loss,
    load_classifier,
)
from encoders.errors import InputError
from encoders.weights import read_weights

over_poolings = pytest.mark.parametrize("pooling", POOLINGS)


def classifier(*, rcps: bool, **options: object) -> CaduceusForSequenceClassification:
    config = {"d_model": 8, "n_layer": 3, "rcps": rcps}
    config["initializer_cfg"] = {"initializer_range": 1.0}
    chosen = ClassifierOptions(num_labels=3, **options)
    return load_classifier(config=config, options=chosen, dtype="float64", seed=3)


def both_strands(network: CaduceusForSequenceClassification) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(7, 12, (4, 21), generator=generator)
    return ids, torch.tensor(network.config.complement_map)[ids.flip(1)]


@over_poolings
@torch.no_grad()
def test_shared_strands_score_alike(pooling: str) -> None:
    network = classifier(rcps=True, pooling=pooling).eval()
    ids, other = both_strands(network)
    scores = network(ids)
    assert scores.shape == (4, 3)
    torch.testing.assert_close(network(other), scores, rtol=0, atol=1e-10)
    embeds = network.caduceus.embed(ids)
    assert torch.equal(network(inputs_embeds=embeds), scores)
    # As upstream computes them: each half pooled as its strand reads, scored, averaged.
    first, second = network.caduceus(ids).chunk(2, dim=-1)
    pooled = [pool(half, pooling) for half in (first, second.flip(1, 2))]
    wanted = sum(F.linear(half, network.score.weight) for half in pooled) / 2
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-12)


def pool(states: Tensor, pooling: str) -> Tensor:
    if pooling in ("first", "last"):
        return states.movedim(1, 0)[0 if pooling == "first" else -1]
    return states.mean(1) if pooling == "mean" else states.max(1).values


@over_poolings
@torch.no_grad()
def test_conjoined_strands_score_alike(pooling: str) -> None:
    network = classifier(rcps=False, pooling=pooling, conjoin_eval=True).eval()
    ids, other = both_strands(network)
    scores = network(torch.stack([ids, other], dim=-1))
    assert torch.equal(network(torch.stack([other, ids], dim=-1)), scores)
    pooled = [pool(network.caduceus(strand), pooling) for strand in (ids, other)]
    wanted = sum(F.linear(strand, network.score.weight) for strand in pooled) / 2
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="both strands"):
        network(ids)
    with pytest.raises(ValueError, match="not by embeddings"):
        network(inputs_embeds=network.caduceus.embed(ids))


@torch.no_grad()
def test_strands_are_conjoined_in_training_or_evaluation() -> None:
    network = classifier(rcps=False, conjoin_train=True)
    ids, other = both_strands(network)
    pair = torch.stack([ids, other], dim=-1)
    assert network.train()(pair).shape == (4, 3)
    single = network.eval()(ids)
    assert single.shape == (4, 3)
    assert not torch.allclose(network(other), single), "one strand alone scores as it reads"
    with pytest.raises(ValueError, match="the options want"):
        network(pair)


def test_losses() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 2, 1, 1, 0])
    labels = F.one_hot(classes, 3).float()
    found = classification_loss(logits, classes)
    torch.testing.assert_close(found, F.cross_entropy(logits, classes))
    found = classification_loss(logits, labels)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(logits, labels))
    torch.testing.assert_close(
        classification_loss(logits, labels, "regression"), (logits - labels).square().mean()
    )
    found = classification_loss(logits[:, :1], classes)
    torch.testing.assert_close(found, (logits[:, 0] - classes).square().mean())
    with pytest.raises(ValueError, match="problem_type"):
        classification_loss(logits, labels, "ranking")


@over_cases("mlm")
def test_reads_a_language_model_and_its_own_file(case: Path, tmp_path: Path) -> None:
    four = ClassifierOptions(num_labels=4)
    network = load_classifier(case, options=four, seed=2)
    stored = read_weights(case).tensors
    for name, tensor in network.state_dict().items():
        assert name == "score.weight" or torch.equal(tensor, stored[name]), name
    assert network.score.weight.abs().max() > 0
    save_network(network, tmp_path)
    again = load_classifier(tmp_path, options=four, seed=99)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    with pytest.raises(InputError, match=r"score\.weight"):
        load_classifier(tmp_path, options=ClassifierOptions(num_labels=2))
    with pytest.raises(InputError, match="without a configuration"):
        load_classifier(case / "model.safetensors")


def test_impossible_options_are_named_together() -> None:
    with pytest.raises(InputError) as error:
        ClassifierOptions(num_labels=0, pooling="median")
    assert [problem.where for problem in error.value.problems] == ["num_labels", "pooling"]
