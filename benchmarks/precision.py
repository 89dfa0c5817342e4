"""How far does a feature move with the precision it is computed in, and how far between people?

Encodes one small simulated cohort with every encoder in float64, then in float32 and under
bfloat16 and float16 autocast, and writes a dated table to benchmarks/results.

    python benchmarks/precision.py                     # every encoder in configs/
    python benchmarks/precision.py caduceus_ps swift   # these; nothing is written
"""

import argparse
import datetime
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import describe_commit, describe_machine
from omegaconf import OmegaConf

from encoders.base import BrainEncoder, DnaEncoder
from multimodal.bold.bids import find_runs
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import load_atlas
from multimodal.bold.segments import RunSegments
from multimodal.cohort.table import Cohort, CohortPaths, read_cohort
from multimodal.features.brain import run_preparer
from multimodal.features.encode import windows_of
from multimodal.features.options import GenomeOptions
from multimodal.genome.haplotypes import Genotypes
from multimodal.genome.sequences import oriented
from multimodal.simulate.cohort import simulate_cohort
from multimodal.simulate.options import SimulationOptions
from multimodal.verbs.pipeline import load_side

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SUBJECTS, SEED = 24, 0
LENGTH_BP = 1000
BATCH = 16
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Neither has arithmetic of its own that autocast could change, or needs a model from elsewhere.
LEFT_OUT = ("dosage", "huggingface")


@dataclass(frozen=True)
class Row:
    """One encoder: deviations from float64, and the spread between subjects, relative RMS."""

    name: str
    between: float
    deviation: dict[str, float | str]


class Brains:
    """The cohort's segments as an encoder wants them, and whose they are."""

    def __init__(self, cohort: Cohort, encoder: BrainEncoder) -> None:
        paths = cohort.paths
        assert paths.bold is not None
        assert paths.atlas is not None
        runs = find_runs(paths.bold, cohort.participant_ids)
        atlas = load_atlas(paths.atlas, paths.atlas_table)
        settings = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/bold/default.yaml"))
        assert isinstance(settings, dict)
        options = BoldOptions(**{str(key): value for key, value in settings.items()})
        self.segments: list[np.ndarray] = []
        self.xyz: list[np.ndarray] = []
        self.subject: list[str] = []
        with run_preparer(atlas, encoder.spec.input, options, 0) as prepare:
            for run, prepared in zip(runs, prepare(runs), strict=True):
                assert isinstance(prepared, RunSegments), prepared
                self.segments += list(prepared.values)
                self.xyz += [prepared.xyz_mm] * len(prepared.values)
                self.subject += [run.participant_id] * len(prepared.values)

    def features(self, encoder: BrainEncoder, autocast: torch.dtype | None) -> np.ndarray:
        """Return one feature a segment [M, D] in float64."""
        dtype = next((p.dtype for p in encoder.parameters()), torch.float64)
        needs_xyz = getattr(encoder.spec.input, "needs_xyz", False)
        found = []
        for rows in _equal_shapes(self.segments):
            given = [torch.from_numpy(np.stack([self.segments[row] for row in rows])).to(dtype)]
            if needs_xyz:
                given.append(torch.from_numpy(np.stack([self.xyz[row] for row in rows])).to(dtype))
            with _precision(autocast):
                found.append(encoder(*given).double().numpy())
        return np.concatenate(found)

    def spread(self, features: np.ndarray) -> float:
        """Return the RMS distance of the subjects' mean features from their mean."""
        names = np.array(self.subject)
        means = np.stack([features[names == who].mean(axis=0) for who in dict.fromkeys(names)])
        return _rms(means - means.mean(axis=0))


class Genomes:
    """The cohort's distinct haplotypes in every window, and who carries which."""

    def __init__(self, cohort: Cohort, encoder: DnaEncoder) -> None:
        assert cohort.paths.genotypes is not None
        assert cohort.paths.reference is not None
        windows, _ = windows_of(cohort, encoder, GenomeOptions(length_bp=LENGTH_BP))
        genotypes = Genotypes(cohort.paths.genotypes, cohort.paths.reference)
        samples = [str(name) for name in cohort.participants["genotype_id"]]
        self.sequences: list[str] = []
        self.carried: list[np.ndarray] = []
        reference: list[int] = []
        for window in windows:
            found = genotypes.haplotypes(window, samples)
            self.carried.append(found.index + len(self.sequences))
            reference += [len(self.sequences)] * len(found.sequences)
            self.sequences += [oriented(text, window.strand) for text in found.sequences]
        self.reference = np.array(reference)

    def features(self, encoder: DnaEncoder, autocast: torch.dtype | None) -> np.ndarray:
        """Return one feature a distinct haplotype [U, D * 2] in float64."""
        found = []
        for start in range(0, len(self.sequences), BATCH):
            tokens = encoder.tokenize(self.sequences[start : start + BATCH])
            with _precision(autocast):
                found.append(encoder(*tokens).double().flatten(1).numpy())
        return np.concatenate(found)

    def spread(self, features: np.ndarray) -> float:
        """Return the RMS distance of subjects from their mean, over windows."""
        carriers = [features[index].mean(axis=1) for index in self.carried]
        return _rms(np.stack([part - part.mean(axis=0) for part in carriers]))


def measure(side: str, name: str, cohort: Cohort) -> list[Row]:
    """Compare one encoder's features between precisions, DNA also as the feature store has it."""
    section = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / side / f"{name}.yaml"))
    assert isinstance(section, dict)

    def load(dtype: str) -> BrainEncoder | DnaEncoder:
        encoder = load_side({**section, "dtype": dtype}, side)
        assert isinstance(encoder, BrainEncoder | DnaEncoder)
        return encoder

    exact, usual = load("float64"), load("float32")
    data = Genomes(cohort, exact) if side == "dna" else Brains(cohort, exact)
    wanted = data.features(exact, None)  # type: ignore[arg-type]
    given: dict[str, np.ndarray | str] = {}
    for precision, autocast in PRECISIONS.items():
        try:
            given[precision] = data.features(usual, autocast)  # type: ignore[arg-type]
        except (RuntimeError, NotImplementedError) as error:
            given[precision] = f"cannot: {str(error).splitlines()[0]}"
    rows = [_compare(name, wanted, given, data)]
    if isinstance(data, Genomes):
        differences = {
            precision: found if isinstance(found, str) else found - found[data.reference]
            for precision, found in given.items()
        }
        name = f"{name}, as stored"
        rows.append(_compare(name, wanted - wanted[data.reference], differences, data))
    return rows


def _compare(
    name: str, wanted: np.ndarray, given: dict[str, np.ndarray | str], data: Genomes | Brains
) -> Row:
    scale = _rms(wanted)
    deviation = {
        precision: found if isinstance(found, str) else _rms(found - wanted) / scale
        for precision, found in given.items()
    }
    return Row(name, data.spread(wanted) / scale, deviation)


def report(rows: list[Row], command: str) -> str:
    """Return the table as Markdown."""
    lines = [
        f"# Precision of the encoders' features, {datetime.date.today().isoformat()}",
        "",
        f"`{command}` at {describe_commit()}, {describe_machine()}, torch {torch.__version__};",
        f"small networks with seeded random weights as in configs/, {SUBJECTS} simulated subjects,",
        f"windows of {LENGTH_BP} bp. RMS of the pooled features' deviation from float64, over the",
        "features' own RMS; in brackets as a share of the spread between subjects, the last column",
        "(the RMS distance of subjects' mean features from their mean). The store holds DNA",
        "features as differences from the reference haplotype's, computed in the same precision.",
        "",
        "| encoder | float32 | bfloat16 autocast | float16 autocast | between subjects |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [_cell(row.deviation[precision], row.between) for precision in PRECISIONS]
        lines.append(f"| {row.name} | {' | '.join(cells)} | {row.between:.1e} |")
    return "\n".join([*lines, ""])


def _cell(deviation: float | str, between: float) -> str:
    if isinstance(deviation, str):
        return deviation
    return f"{deviation:.1e} ({deviation / between:.1e})"


def _precision(autocast: torch.dtype | None) -> torch.autocast:
    return torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _equal_shapes(segments: list[np.ndarray]) -> Iterator[list[int]]:
    batch: list[int] = []
    for row, segment in enumerate(segments):
        if batch and (len(batch) == BATCH or segment.shape != segments[batch[0]].shape):
            yield batch
            batch = []
        batch.append(row)
    yield batch


@torch.inference_mode()
def main() -> int:
    """Measure, print and (for all encoders) write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="encoders; by default all")
    chosen = parser.parse_args().names
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        simulate_cohort(Path(folder), SimulationOptions(subjects=SUBJECTS, seed=SEED))
        cohort = read_cohort(CohortPaths.from_dir(Path(folder)))
        for side in ("dna", "brain"):
            for path in sorted((ROOT / "configs" / side).glob("*.yaml")):
                if path.stem not in LEFT_OUT and (not chosen or path.stem in chosen):
                    rows += measure(side, path.stem, cohort)
                    print(rows[-1], flush=True)
    text = report(rows, "python benchmarks/precision.py")
    print(text)
    if not chosen:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"precision-{datetime.date.today().isoformat()}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
