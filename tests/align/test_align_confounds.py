"""Batches of one stratum, and the adversary whose reading the latents unlearn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from encoders.errors import InputError
from multimodal.align.adversary import UNKNOWN, Adversary, reverse_gradient
from multimodal.align.data import AlignData, AlignDataset, EpochSampler, GallerySampler
from multimodal.align.fit import fit
from multimodal.align.options import AlignOptions

QUICK = AlignOptions(epochs=2, hidden_dim=32, latent_dim=16, patience=None)


@pytest.mark.parametrize("batch_size", [None, 3, 100])
def test_batches_hold_one_stratum(batch_size):
    rows = np.arange(10, 40)
    strata = np.array(["a"] * 12 + ["b"] * 17 + ["alone"])[np.random.default_rng(0).permutation(30)]
    sampler = EpochSampler(rows, batch_size, 0, strata=strata)
    batches = [batch.rows for batch in sampler]
    assert len(batches) == len(sampler)
    label = dict(zip(rows.tolist(), strata.tolist(), strict=True))
    assert all(len({label[row] for row in batch.tolist()}) == 1 for batch in batches)
    seen = sorted(np.concatenate(batches))
    assert seen == [row for row in rows if label[row] != "alone"]
    assert all(len(batch) <= (batch_size or 100) for batch in batches)
    again = [batch.rows for batch in EpochSampler(rows, batch_size, 0, strata=strata)]
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    parts = [
        [batch.rows for batch in EpochSampler(rows, batch_size, 0, rank, 3, strata)]
        for rank in range(3)
    ]
    joined = [np.concatenate(shares) for shares in zip(*parts, strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(batches, joined, strict=True))


def test_gradients_are_reversed():
    values = torch.randn(3, 2, requires_grad=True)
    (reverse_gradient(values) * 3).sum().backward()
    assert torch.equal(values.grad, torch.full((3, 2), -3.0))


def test_unknown_values_are_not_read():
    torch.manual_seed(0)
    adversary = Adversary(4, [2, 3])
    gene, brain = torch.randn(2, 6, 4)
    confounds = torch.tensor([[0, 2], [1, 0], [0, 1], [1, UNKNOWN], [0, 0], [1, 2]])
    known = adversary(gene[:3], brain[:3], confounds[:3])
    nothing = torch.full((3, 2), UNKNOWN)
    padded = adversary(gene, brain, torch.cat([confounds[:3], nothing]))
    torch.testing.assert_close(known, padded)
    assert adversary(gene[:3], brain[:3], nothing).item() == 0


def test_latents_unlearn_what_the_adversary_reads():
    """Latents free to move anywhere end where the adversary reads no more than chance."""
    torch.manual_seed(0)
    site = torch.arange(40) % 2
    free = torch.randn(40, 8)
    free[:, 0] += 2 * (2 * site - 1)
    free.requires_grad_()
    adversary = Adversary(8, [2])
    reader = torch.optim.SGD(adversary.parameters(), lr=0.1)
    mover = torch.optim.SGD([free], lr=5.0)
    history = []
    for step in range(200):
        latents = F.normalize(free, dim=1)
        loss = adversary(latents, latents, site[:, None])
        reader.zero_grad()
        mover.zero_grad()
        loss.backward()
        reader.step()
        if step >= 20:
            mover.step()
        history.append(loss.item())
    assert history[19] < 0.4
    assert history[-1] == pytest.approx(math.log(2), abs=0.1)


def test_a_fit_with_both(world, split):
    gene, brain = world()
    site = np.arange(120) % 3
    options = replace(QUICK, batch_strata=["site"], adversary=["site"], batch_size=16)
    assert AlignOptions.from_dict(options.as_dict()) == options
    told = {"strata": site.astype(str), "confounds": site[:, None], "progress": False}
    first = fit(gene, brain, split(), np.arange(120), None, options, **told)
    plain = fit(gene, brain, split(), np.arange(120), None, QUICK, progress=False)
    name = "gene.head.layers.0.weight"
    assert not torch.equal(first.aligner.state_dict()[name], plain.aligner.state_dict()[name])
    assert first.aligner.state_dict().keys() == plain.aligner.state_dict().keys()
    with pytest.raises(InputError) as caught:
        fit(gene, brain, split(), np.arange(120), None, options, progress=False)
    assert [p.where for p in caught.value.problems] == ["align.batch_strata", "align.adversary"]
    with pytest.raises(InputError, match="a list of columns"):
        replace(QUICK, adversary="site")


def test_the_epoch_is_chosen_within_strata():
    rows = np.arange(4, 12)
    strata = np.array(list("aabbbacd"))
    galleries = [gallery.rows.tolist() for gallery in GallerySampler(rows, strata)]
    assert galleries == [[4, 5, 9], [6, 7, 8]]
    everybody = [gallery.rows.tolist() for gallery in GallerySampler(rows, np.arange(8))]
    assert everybody == [rows.tolist()]
    features, relatives = torch.zeros(12, 2), torch.arange(12)
    confounds = torch.tensor([[0, 0]] * 6 + [[0, 1]] * 6)
    dataset = AlignDataset(features, features, relatives, confounds=confounds)
    data = AlignData(dataset, np.arange(4), rows, None, 0)
    assert [each.tolist() for each in data.galleries().galleries] == [[4, 5], [6, 7, 8, 9, 10, 11]]
    data.strata = np.array(["x"] * 12)
    assert [each.tolist() for each in data.galleries().galleries] == [rows.tolist()]


def test_an_adversary_of_weight_zero_changes_nothing(world, split):
    gene, brain = world()
    told = {"confounds": (np.arange(120) % 3)[:, None], "progress": False}
    without = replace(QUICK, adversary=["site"], adversary_weight=0.0)
    fits = [
        fit(gene, brain, split(), np.arange(120), None, options, **told)
        for options in (QUICK, without, replace(without, adversary_weight=1.0))
    ]
    plain, zero, one = (found.aligner.state_dict()["gene.head.layers.0.weight"] for found in fits)
    assert torch.equal(plain, zero)
    assert not torch.equal(plain, one)
    rate = replace(without, adversary_weight=1.0, adversary_learning_rate=0.1)
    faster = fit(gene, brain, split(), np.arange(120), None, rate, **told)
    assert not torch.equal(faster.aligner.state_dict()["gene.head.layers.0.weight"], one)
