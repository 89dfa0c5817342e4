"""A small synthetic cohort whose brains follow its genes, or do not."""

from collections.abc import Callable

import numpy as np

from multimodal.features.tables import BrainFeatures, GeneFeatures

World = Callable[..., tuple[GeneFeatures, BrainFeatures]]


def make_world(
    seed: int = 0, *, subjects: int = 120, signal: bool = True, segments: int = 3
) -> tuple[GeneFeatures, BrainFeatures]:
    """Twelve variants in 3 windows move tiny features; four of 40 brain dimensions follow them."""
    random = np.random.default_rng(seed)
    windows, strands, dim, variants, edges = 3, 2, 10, 12, 40
    alleles = random.binomial(1, random.uniform(0.2, 0.5, variants), (subjects, 2, variants))
    effect = random.normal(size=(variants, strands, dim)) * 1e-4
    window = np.arange(variants) % windows
    haplotypes = np.stack(
        [
            np.tensordot(alleles[:, :, window == w], effect[window == w], axes=1)
            for w in range(windows)
        ],
        axis=1,
    ).astype(np.float32)
    distinct, index = np.unique(haplotypes.reshape(-1, strands * dim), axis=0, return_inverse=True)
    ids = [f"sub-{i:04d}" for i in range(subjects)]
    gene = GeneFeatures(
        ids,
        [f"region{w}" for w in range(windows)],
        distinct.reshape(-1, strands, dim),
        index.reshape(subjects, windows, 2).astype(np.int64),
    )
    dosage = alleles.sum(axis=1)
    score = (dosage - dosage.mean(0)) @ random.normal(size=(variants, 4))
    score = score / score.std(axis=0)
    if not signal:
        score = random.permutation(score)
    person = score @ random.normal(size=(4, edges)) + random.normal(size=(subjects, edges))
    subject = np.repeat(np.arange(subjects), segments)
    values = person[subject] + 0.3 * random.normal(size=(len(subject), edges))
    run = np.tile(np.arange(segments) // 2, subjects)
    fd_mm = random.uniform(0.05, 0.4, len(subject)).astype(np.float32)
    return gene, BrainFeatures(ids, values.astype(np.float32), subject, run, fd_mm)
