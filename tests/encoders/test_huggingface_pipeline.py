"""A cohort's genomes through a network of the transformers library, as a user would run it."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_models import save_byte_pairs, save_network

from multimodal.simulate.cohort import simulate_cohort
from multimodal.simulate.options import SimulationOptions


@pytest.mark.slow
def test_genomes_are_encoded_with_byte_pairs_from_a_folder(tmp_path: Path) -> None:
    cohort, model = tmp_path / "cohort", tmp_path / "model"
    options = SimulationOptions(
        subjects=20,
        region_count=2,
        region_length_bp=500,
        causal_variants=2,
        causal_dimensions=1,
        frames_one_run=32,
        frames_two_runs=32,
        voxels=(8, 8, 8),
    )
    simulate_cohort(cohort, options)
    save_network(model, "modernbert", max_position_embeddings=512)
    save_byte_pairs(model)
    words = ["dna=huggingface", f"dna.weights={model}", "dna.config=null", "sides=[dna]"]
    command = ["encode", f"cohort.dir={cohort}", f"run_dir={tmp_path / 'run'}", *words]
    for _ in range(2):  # the second time, all is there
        done = subprocess.run(
            [sys.executable, "-m", "multimodal.cli", *command], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    store = tmp_path / "run" / "features" / "dna" / "huggingface"
    windows = pq.read_table(store / "windows")
    assert windows.schema.field("feature").type.list_size == 2 * 16
    changed = [any(row.as_py()) for row in windows["feature"]]
    # A carrier of the reference differs by nothing; every other haplotype by something.
    assert changed.count(False) <= 2
    assert changed.count(True) >= 2
