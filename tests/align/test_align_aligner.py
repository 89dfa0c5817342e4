"""The trained towers at work: equal inputs, single subjects, files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from encoders.errors import InputError
from multimodal.align.aligner import Aligner
from multimodal.align.fit import fit
from multimodal.align.options import AlignOptions
from multimodal.features.tables import BrainFeatures, GeneFeatures


@pytest.fixture(scope="module")
def fitted(world):
    gene, brain = world()
    split = np.array(["train"] * 90 + ["validation"] * 30)
    options = AlignOptions(epochs=3, strand_merge="sum_absdiff")
    return (
        fit(gene, brain, split, np.arange(120), None, options, progress=False).aligner,
        gene,
        brain,
    )


def test_latents_are_float32_of_unit_length(fitted):
    aligner, gene, brain = fitted
    for latents in (aligner.embed_genes(gene), aligner.embed_brains(brain)):
        assert latents.shape == (120, 512)
        assert latents.dtype == np.float32
        assert np.allclose(np.linalg.norm(latents, axis=1), 1, atol=1e-6)


def test_equal_inputs_give_bit_equal_latents(fitted):
    aligner, gene, brain = fitted
    rows = np.array([5, 0, 5, 17, 5])
    latents = aligner.embed_genes(gene.take(rows))
    assert np.array_equal(latents[0], latents[2])
    assert np.array_equal(latents[0], latents[4])
    # Swapped haplotypes, swapped strands, and a copy stored apart are the same genome.
    phase = replace(gene, index=gene.index[:, :, ::-1].copy())
    strands = replace(gene, distinct=gene.distinct[:, ::-1].copy())
    copied = replace(
        gene,
        distinct=np.concatenate([gene.distinct, gene.distinct]),
        index=gene.index + len(gene.distinct) * (np.arange(2) % 2),
    )
    for same in (phase, strands, copied):
        assert np.array_equal(aligner.embed_genes(same), aligner.embed_genes(gene))
    twice = BrainFeatures(
        ["a", "b"],
        np.concatenate([brain.values[:3], brain.values[:3]]),
        np.array([0, 0, 0, 1, 1, 1]),
        np.tile(brain.run[:3], 2),
        np.tile(brain.mean_fd_mm[:3], 2),
    )
    latents = aligner.embed_brains(twice)
    assert np.array_equal(latents[0], latents[1])


def test_a_latent_does_not_depend_on_the_others(fitted):
    aligner, gene, brain = fitted
    genes, brains = aligner.embed_genes(gene), aligner.embed_brains(brain)
    for row in (0, 41, 119):
        one = np.array([row])
        assert np.allclose(aligner.embed_genes(gene.take(one))[0], genes[row], rtol=1e-6, atol=1e-8)
        assert np.allclose(
            aligner.embed_brains(brain.take(one))[0], brains[row], rtol=1e-6, atol=1e-8
        )


def test_save_and_load(fitted, tmp_path):
    aligner, gene, brain = fitted
    path = tmp_path / "towers.safetensors"
    config = json.loads(json.dumps(aligner.save(path)))
    assert [p.name for p in tmp_path.iterdir()] == ["towers.safetensors"]
    again = Aligner.load(config, path)
    assert np.array_equal(again.embed_genes(gene), aligner.embed_genes(gene))
    assert np.array_equal(again.embed_brains(brain), aligner.embed_brains(brain))
    assert not again.training


def test_damaged_and_foreign_files_are_refused(fitted, tmp_path):
    aligner, _, _ = fitted
    path = tmp_path / "towers.safetensors"
    config = aligner.save(path)
    with pytest.raises(InputError, match="format 99"):
        Aligner.load({**config, "format": 99}, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"towers\.safetensors: cannot be read"):
        Aligner.load(config, path)
    with pytest.raises(InputError, match="cannot be read"):
        Aligner.load(config, tmp_path / "absent.safetensors")


def test_features_that_do_not_fit_are_refused(fitted):
    aligner, gene, brain = fitted
    with pytest.raises(InputError, match=r"missing.*region2"):
        aligner.embed_genes(GeneFeatures(gene.participant_ids, ["x"], gene.distinct, gene.index))
    reordered = replace(gene, windows=gene.windows[::-1])
    with pytest.raises(InputError, match="another order"):
        aligner.embed_genes(reordered)
    with pytest.raises(InputError, match="fitted on 1 windows of 40"):
        aligner.embed_brains(replace(brain, values=brain.values[:, :7]))
    broken = brain.values.copy()
    broken[brain.subject == 4] = np.nan
    with pytest.raises(InputError, match="sub-0004"):
        aligner.embed_brains(replace(brain, values=broken))
