"""What is true in each world: heritability, resemblance of relatives, confounding."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from encoders.errors import InputError
from multimodal.simulate.ancestry import cluster, principal_components
from multimodal.simulate.brains import correlation_from_log, draw_brains
from multimodal.simulate.cohort import draw_motion_levels
from multimodal.simulate.effects import draw_causal_model
from multimodal.simulate.genome import draw_genome
from multimodal.simulate.motion import draw_motion
from multimodal.simulate.options import SimulationOptions
from multimodal.simulate.people import draw_people, people_of_samples
from multimodal.simulate.scan import parcel_signals
from multimodal.simulate.streams import stream


@pytest.fixture(scope="module", autouse=True)
def _one_blas_thread():
    """Small matrices are slower on many threads, above all beside other tests."""
    with threadpool_limits(1):
        yield


LARGE = SimulationOptions(subjects=600, seed=11)


def truth(options):
    people = draw_people(options)
    genome = draw_genome(options, people)
    dosage = (genome.alleles == 1).sum(axis=1).astype(float)
    causal = draw_causal_model(options, genome.variants, dosage, people.ancestry)
    return people, genome, causal, draw_brains(options, people, causal.scores)


def explained(predictors, target):
    """Share of the variance of `target` columns that a linear model explains."""
    basis = np.column_stack([np.ones(len(predictors)), predictors])
    residual = target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0]
    return 1.0 - residual.var(axis=0) / target.var(axis=0)


def off_diagonal(brains):
    rows, columns = np.triu_indices(brains.correlation.shape[1], 1)
    return brains.correlation[:, rows, columns]


@pytest.mark.parametrize("heritability", [0.3, 0.7])
def test_signal_has_the_heritability_asked_for(heritability):
    _, _, causal, brains = truth(replace(LARGE, heritability=heritability))
    shares = explained(causal.scores, brains.dimensions)
    assert shares.mean() == pytest.approx(heritability, abs=0.06)


def test_in_signal_scores_drive_connectivity_and_in_null_they_do_not():
    _, _, causal, brains = truth(LARGE)
    in_signal = explained(causal.scores, off_diagonal(brains)).mean()
    _, _, causal, brains = truth(replace(LARGE, world="null"))
    in_null = explained(causal.scores, off_diagonal(brains)).mean()
    # Four predictors explain 4 / 600 of anything by chance.
    assert in_signal > 0.4
    assert in_null < 0.03


@pytest.mark.parametrize("world", ["signal", "null"])
@pytest.mark.parametrize("wanted", [0.1, 0.15])
def test_network_correlations_differ_by_the_sd_asked_for(world, wanted):
    _, _, _, brains = truth(replace(LARGE, world=world, correlation_sd=wanted, site_shift_sd=0.0))
    assert off_diagonal(brains).std(axis=0).mean() == pytest.approx(wanted, rel=0.02)
    assert np.linalg.eigvalsh(brains.correlation).min() > 0.0


def test_confounded_ties_ancestry_to_site_and_site_to_connectivity():
    options = replace(LARGE, world="confounded")
    people, _, causal, brains = truth(options)
    away = np.mean(people.ancestry != people.site)
    assert 0.15 <= away <= 0.20
    values = off_diagonal(brains)
    gap = values[people.site == 0].mean(axis=0) - values[people.site == 1].mean(axis=0)
    assert np.abs(gap).mean() > 1.5 * options.correlation_sd
    # Within a site and an ancestry nothing is left.
    cell = (people.site == 0) & (people.ancestry == 0)
    assert explained(causal.scores[cell], values[cell]).mean() < 0.06


@pytest.mark.parametrize("world", ["signal", "null"])
def test_site_and_ancestry_are_independent_elsewhere(world):
    people = draw_people(replace(LARGE, world=world))
    assert abs(np.corrcoef(people.site, people.ancestry)[0, 1]) < 0.02
    assert people.site.mean() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("world", ["signal", "null", "confounded"])
def test_relatives_have_like_brains_in_every_world(world):
    options = replace(LARGE, world=world, subjects=1200, family_fraction=0.9)
    people, _, _, brains = truth(options)
    resemblance = {"monozygotic": 0.7 + 0.3 * 0.2, "siblings": 0.35 + 0.3 * 0.2}
    for kind, expected in resemblance.items():
        pairs = [m[:2] for m in people.members() if people.kind[people.family[m[0]]] == kind]
        first, second = brains.dimensions[np.array(pairs).T]
        found = np.mean([np.corrcoef(first[:, k], second[:, k])[0, 1] for k in range(4)])
        assert found == pytest.approx(expected, abs=0.12)


def test_relatives_share_the_haplotypes_they_should():
    options = replace(LARGE, family_fraction=0.9)
    people, genome, _, _ = truth(options)
    shared = {"monozygotic": [], "siblings": [], "single": []}
    members = people.members()
    for family, rows in enumerate(members):
        if people.kind[family] in ("monozygotic", "siblings"):
            # Haplotype 0 comes from one parent, 1 from the other.
            same = genome.alleles[rows[0]] == genome.alleles[rows[1]]
            shared[people.kind[family]].append(same.mean())
            if people.kind[family] == "monozygotic":
                assert np.array_equal(genome.markers[rows[0]], genome.markers[rows[1]])
                assert people.sex[rows[0]] == people.sex[rows[1]]
            assert people.age[rows].max() - people.age[rows].min() <= 8.0
    singles = [rows[0] for rows in members if len(rows) == 1]
    for a, b in pairwise(singles):
        shared["single"].append((genome.alleles[a] == genome.alleles[b]).mean())
    chance = np.mean(shared["single"])
    ibd = (np.mean(shared["siblings"]) - chance) / (1.0 - chance)
    assert np.mean(shared["monozygotic"]) == 1.0
    assert ibd == pytest.approx(0.5, abs=0.1)


def test_ancestries_differ_in_frequency_and_show_in_the_first_component():
    people, genome, _, _ = truth(LARGE)
    components = principal_components(genome.markers)
    gap = abs(
        components[people.ancestry == 0, 0].mean() - components[people.ancestry == 1, 0].mean()
    )
    assert gap > 1.5
    groups = cluster(components[:, :2], 2, np.random.default_rng(0))
    agreement = np.mean(groups == people.ancestry)
    assert agreement > 0.97


@pytest.mark.parametrize("seed", range(3))
def test_sizes_are_those_that_a_small_study_can_work_with(seed):
    options = SimulationOptions(seed=seed)
    people, genome, causal, _ = truth(options)
    inside = [v for v, variant in enumerate(genome.variants) if variant.region >= 0]
    frequency = (genome.alleles[:, :, inside] == 1).mean(axis=(0, 1))
    assert 20 <= np.sum((frequency >= 0.2) & (frequency <= 0.5)) <= 28
    assert ((causal.frequency >= 0.2) & (causal.frequency <= 0.5)).all()
    for region in range(options.region_count):
        columns = [v for v, variant in enumerate(genome.variants) if variant.region == region]
        haplotypes = genome.alleles[:, :, columns].reshape(2 * len(people), -1)
        assert len(np.unique(haplotypes, axis=0)) <= 40
    relatives = np.mean([people.kind[f] != "single" for f in people.family])
    assert 0.18 <= relatives <= 0.26


@settings(deadline=None, max_examples=25)
@given(networks=st.integers(3, 9), size=st.floats(0.0, 1.0), seed=st.integers(0, 2**31))
def test_any_log_correlation_gives_a_correlation_matrix(networks, size, seed):
    rng = np.random.default_rng(seed)
    pairs = networks * (networks - 1) // 2
    wanted = size * rng.standard_normal((3, pairs))
    matrices = correlation_from_log(wanted, networks)
    assert np.allclose(np.diagonal(matrices, axis1=1, axis2=2), 1.0)
    values, vectors = np.linalg.eigh(matrices)
    assert values.min() > 0.0
    logarithm = (vectors * np.log(values)[:, None, :]) @ vectors.transpose(0, 2, 1)
    rows, columns = np.triu_indices(networks, 1)
    assert np.allclose(logarithm[:, rows, columns], wanted, atol=1e-6)


def test_parcels_correlate_as_their_networks_do():
    options = SimulationOptions()
    rng = np.random.default_rng(5)
    correlation = np.array([[1.0, 0.5, -0.3], [0.5, 1.0, 0.1], [-0.3, 0.1, 1.0]])
    network = np.arange(9) % 3
    signals = parcel_signals(rng, options, network, correlation, 60_000)
    expected = options.coherence * correlation[network][:, network]
    np.fill_diagonal(expected, 1.0)
    assert np.abs(np.corrcoef(signals) - expected).max() < 0.04
    assert signals.std() == pytest.approx(1.0, abs=0.02)


def test_motion_is_as_large_as_asked_and_leaves_four_segments():
    options = SimulationOptions()
    people = draw_people(options)
    levels = draw_motion_levels(options, people)
    assert np.corrcoef(levels, people.age)[0, 1] > 0.1
    usual = draw_motion(np.random.default_rng(0), options, 5000, 1.0)
    assert np.median(usual.fd_mm) == pytest.approx(options.motion_fd_mm, rel=0.15)
    for row, level in enumerate(levels):
        frames = options.frames_one_run
        motion = draw_motion(stream(0, "test", row), options, frames, float(level))
        kept = (motion.fd_mm <= 0.5)[options.non_steady_frames :]
        assert kept.sum() // 64 >= 4


@pytest.mark.parametrize("world", ["signal", "null", "confounded"])
def test_most_people_are_in_strata_that_five_folds_can_match_within(world):
    people = draw_people(SimulationOptions(world=world))
    first = np.array([rows[0] for rows in people.members()])
    stratum = np.char.add(people.sex, (people.site * 2 + people.ancestry).astype(str))[first]
    _, sizes = np.unique(stratum, return_counts=True)
    assert sizes[sizes >= 25].sum() >= 0.65 * len(first)


def test_streams_are_named_and_independent():
    draws = {
        (name, number): stream(1, name, number).random()
        for name in ("brains", "genotypes")
        for number in range(3)
    }
    assert len(set(draws.values())) == 6
    assert stream(1, "brains", 2).random() == draws["brains", 2]


def test_real_ancestry_is_kept_and_tied_to_site_when_confounded():
    ancestry = np.array([0] * 120 + [1] * 80)
    people = people_of_samples(SimulationOptions(world="confounded"), ancestry)
    assert np.array_equal(people.ancestry, ancestry)
    assert 0.15 <= np.mean(people.site != ancestry) <= 0.20


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"world": "signals"}, "cohort.world"),
        ({"subjects": 3}, "cohort.subjects"),
        ({"heritability": 1.2}, "cohort.heritability"),
        ({"site_shares": (0.6, 0.3)}, "cohort.site_shares"),
        ({"region_length_bp": 100}, "cohort.region_length_bp"),
        ({"causal_dimensions": 16, "causal_variants": 16}, "cohort.causal_dimensions"),
        ({"world": "confounded", "sites": 3, "site_shares": (0.4, 0.3, 0.3)}, "cohort.sites"),
        ({"region_count": 0}, "cohort.region_count"),
    ],
)
def test_impossible_options_are_refused_by_their_key(wrong, key):
    with pytest.raises(InputError) as caught:
        SimulationOptions(**wrong)
    assert [problem.where for problem in caught.value.problems] == [key]
