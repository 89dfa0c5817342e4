"""Embedding stored features: subjects a second, and whether memory stays flat.

A feature store of made-up subjects is written first (windows of a DNA encoder, segments of a brain
encoder), then embedded in a process of its own, block by block: a tenth of the subjects, and all of
them. Memory is flat where the peak does not grow with the subjects.

    python benchmarks/embed.py                  # 10,000 subjects, and the table in results
    python benchmarks/embed.py --subjects 500   # nothing is written
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from peak import peak_mib
from tables import heading, markdown, publish

SUBJECTS, BLOCK = 10_000, 1024
WINDOWS, HAPLOTYPES, DNA_DIM = 8, 200, 64
RUNS, BRAIN_DIM = 2, 2048
SHARD_SUBJECTS = 16
TRAINING = 128


def main() -> int:
    """Write stores, embed them in processes of their own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=SUBJECTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        folder, side = chosen.measure
        print(json.dumps(_measure(Path(folder), side, chosen.threads)))
        return 0
    rows = []
    peaks: dict[tuple[str, int], float] = {}
    counts = (max(TRAINING, chosen.subjects // 10), chosen.subjects)
    for subjects in counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _write_stores(folder, subjects)
            for side in ("gene", "brain"):
                found = _in_process(folder, side, chosen.threads)
                peaks[side, subjects] = found["mib"]
                rate = f"{subjects / found['seconds']:,.0f}"
                memory = f"{found['mib']:,.0f} MiB"
                rows.append([side, f"{subjects:,}", f"{found['seconds']:.1f}", rate, memory])
                print(" | ".join(rows[-1]), flush=True)
    notes = [
        f"Stored features: {WINDOWS} windows ({HAPLOTYPES} haplotypes each, 2 x {DNA_DIM} numbers)",
        f"and of {RUNS} runs ({BRAIN_DIM:,} numbers each), blocks of {BLOCK:,} subjects,",
        f"{chosen.threads} threads. Memory: the rise of a process's peak while it embeds.",
        *(_growth(side, peaks, counts) for side in ("gene", "brain")),
    ]
    lines = heading("Embedding stored features", notes)
    header = ["side", "subjects", "seconds", "subjects a second", "peak memory"]
    write = chosen.subjects == SUBJECTS
    publish("embed", [*lines, *markdown(header, rows)], write=write)
    return 0


def _growth(side: str, peaks: dict[tuple[str, int], float], counts: tuple[int, int]) -> str:
    few, many = counts
    times = peaks[side, many] / max(1.0, peaks[side, few])
    return f"{side}: {many / few:.0f} times the subjects, {times:.2f} times the memory."


def _in_process(folder: Path, side: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(folder), side, "--threads", str(threads)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return measured


def _measure(folder: Path, side: str, threads: int) -> dict[str, Any]:
    """Embed one side of the stores, as `genebold embed` does once features are there."""
    import torch

    from multimodal.features import read
    from multimodal.latent.shards import LatentShards

    torch.set_num_threads(threads)
    aligner = _aligner(folder)
    shards = LatentShards(folder / side / "latents.parquet")
    before = peak_mib(reset=True)
    start = time.perf_counter()
    if side == "gene":
        store = folder / "dna"
        ids = read.stored_participants(store)
        for number, first in enumerate(range(0, len(ids), BLOCK)):
            chosen = ids[first : first + BLOCK]
            values = aligner.embed_genes(read.read_gene_features(store, chosen))
            shards.write(side, number, chosen, values, f"{number}")
    else:
        for number, block in enumerate(read.brain_blocks(folder / "brain", BLOCK)):
            values = aligner.embed_brains(block.read())
            shards.write(side, number, block.participant_ids, values, f"{number}")
    shards.join()
    return {"seconds": time.perf_counter() - start, "mib": peak_mib() - before}


def _aligner(folder: Path) -> Any:
    from multimodal.align.aligner import Aligner, pool_brains, pool_genes
    from multimodal.features import read
    from projectors.tower import Tower, TowerOptions

    ids = read.stored_participants(folder / "dna")[:TRAINING]
    genes = read.read_gene_features(folder / "dna", ids)
    brains = read.brain_blocks(folder / "brain", TRAINING)[0].read()
    gene = Tower.fit(pool_genes(genes, "mean"), TowerOptions())
    brain = Tower.fit(pool_brains(brains, "motion"), TowerOptions())
    return Aligner(gene, brain, genes.windows).eval()


def _write_stores(folder: Path, subjects: int) -> None:
    from multimodal.features.writer import StoreWriter

    ids = [f"sub-{number:06d}" for number in range(subjects)]
    rng = np.random.default_rng(0)
    with StoreWriter(folder / "dna", {"made": "up"}) as store:
        for number in range(WINDOWS):
            _write_window(store, number, ids, rng)
        store.finish()
    with StoreWriter(folder / "brain", {"made": "up"}) as store:
        for number, first in enumerate(range(0, subjects, SHARD_SUBJECTS)):
            _write_segments(store, number, ids[first : first + SHARD_SUBJECTS], rng)
        store.finish()


def _write_window(store: Any, number: int, ids: list[str], rng: np.random.Generator) -> None:
    from multimodal.features.shards import texts, vectors

    hashes = [f"{number:08d}{row:024d}" for row in range(HAPLOTYPES)]
    features = rng.normal(size=(HAPLOTYPES, 2 * DNA_DIM)).astype(np.float32)
    features[0] = 0

    def place(rows: int) -> dict[str, pa.Array]:
        region = texts([f"gene{number}"], np.zeros(rows, dtype=np.int32))
        return {"region": region, "window": pa.array(np.zeros(rows, dtype=np.int32))}

    def known(rows: slice) -> dict[str, pa.Array]:
        chosen = hashes[rows]
        feature = vectors(features[rows])
        return {**place(len(chosen)), "sequence_hash": pa.array(chosen), "feature": feature}

    store.write(f"reference/{number:06d}.parquet", known(slice(0, 1)), "")
    store.write(f"windows/{number:06d}-000000.parquet", known(slice(None)), "")
    carriers = {
        "subject": texts(ids, np.repeat(np.arange(len(ids), dtype=np.int32), 2)),
        **place(2 * len(ids)),
        "haplotype": pa.array(np.tile(np.array([0, 1], dtype=np.int8), len(ids))),
        "sequence_hash": texts(hashes, rng.integers(0, HAPLOTYPES, 2 * len(ids))),
    }
    store.write(f"carriers/{number:06d}.parquet", carriers, "")


def _write_segments(store: Any, number: int, ids: list[str], rng: np.random.Generator) -> None:
    from multimodal.features.shards import texts, vectors

    rows = RUNS * len(ids)
    columns = {
        "subject": texts(np.repeat(ids, RUNS).tolist()),
        "session": texts([""] * rows),
        "run": texts([str(run) for run in range(RUNS)] * len(ids)),
        "segment": pa.array(np.zeros(rows, dtype=np.int32)),
        "start_frame": pa.array(np.zeros(rows, dtype=np.int64)),
        "mean_fd_mm": pa.array(rng.uniform(0.05, 0.4, rows).astype(np.float32)),
        "feature": vectors(rng.normal(size=(rows, BRAIN_DIM)).astype(np.float32)),
    }
    store.write(f"segments/{number:06d}.parquet", columns, f"{number}")


if __name__ == "__main__":
    raise SystemExit(main())
