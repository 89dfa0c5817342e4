"""A tiny cohort in real files, and tiny encoders, for the tests of the feature store."""

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pysam
import torch
from torch import nn

from encoders.base import (
    BrainEncoder,
    DnaEncoder,
    EncoderSpec,
    ParcelInput,
    TokenBatch,
    WindowInput,
)
from encoders.weights import tensors_sha256
from multimodal.bold.options import BoldOptions
from multimodal.cohort.table import Cohort, CohortPaths, read_cohort

BOLD = BoldOptions(
    use_mask=False,
    motion="none",
    wm_csf="none",
    filter="none",
    high_pass_hz=None,
    fd_threshold_mm=None,
    drop_non_steady=False,
    detrend=False,
    min_frames=10,
)
REGIONS = (("alpha", 200, 500, "+"), ("beta", 900, 1140, "-"), ("gamma", 1500, 1560, "+"))


def write_cohort(folder: Path, subjects: int = 20, seed: int = 0) -> Cohort:
    """Write a cohort: the last subject has no genotype, the first no BOLD."""
    rng = np.random.default_rng(seed)
    ids = [f"sub-{row:03d}" for row in range(subjects)]
    rows = [f"{who}\tG{who[4:]}\t{'ab'[row % 2]}" for row, who in enumerate(ids[:-1])]
    rows.append(f"{ids[-1]}\tn/a\ta")
    text = "\n".join(["participant_id\tgenotype_id\tsite", *rows])
    (folder / "participants.tsv").write_text(text + "\n")
    write_genome(folder, [f"G{who[4:]}" for who in ids[:-1]], rng)
    write_scans(folder, ids[1:], rng)
    return read_cohort(CohortPaths.from_dir(folder))


def write_genome(folder: Path, samples: list[str], rng: np.random.Generator) -> None:
    bases = rng.choice(list("ACGT"), 2000)
    (folder / "reference.fa").write_text(f">chr1\n{''.join(bases)}\n")
    pysam.faidx(str(folder / "reference.fa"))
    bed = "".join(f"chr1\t{start}\t{end}\t{name}\t0\t{s}\n" for name, start, end, s in REGIONS)
    (folder / "regions.bed").write_text(bed)
    columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"]
    lines = [
        "##fileformat=VCFv4.3",
        "##contig=<ID=chr1,length=2000>",
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        "\t".join([*columns, *samples]),
    ]
    # None in gamma: a region that everybody carries as the reference has it.
    for number, start in enumerate([*range(210, 490, 40), *range(910, 1130, 40)]):
        ref = bases[start]
        alt = "ACGT"["CGTA".index(ref)] if number % 3 else ref + "TTG"
        alleles = ["0|0", "0|1", "1|0", "1|1", ".|."]
        calls = rng.choice(alleles, len(samples), p=[0.4, 0.25, 0.2, 0.1, 0.05])
        fields = ["chr1", str(start + 1), ".", ref, alt, ".", "PASS", ".", "GT", *calls]
        lines.append("\t".join(fields))
    plain = folder / "genotypes.vcf"
    plain.write_text("\n".join(lines) + "\n")
    pysam.tabix_index(str(plain), preset="vcf", force=True)


def write_scans(folder: Path, ids: list[str], rng: np.random.Generator) -> None:
    labels = np.zeros((4, 4, 3), dtype=np.int16)
    labels[:, :2], labels[:2, 2:], labels[2:, 2:] = 1, 2, 3
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(labels, affine), folder / "atlas.nii.gz")
    for row, who in enumerate(ids):
        for run in range(1, 2 + row % 2):
            func = folder / "derivatives" / who / "func"
            func.mkdir(parents=True, exist_ok=True)
            data = rng.normal(100, 5, (*labels.shape, 36)).astype(np.float32)
            image = nib.Nifti1Image(data, affine)
            image.header.set_zooms((3, 3, 3, 2))
            image.header.set_xyzt_units("mm", "sec")
            nib.save(image, func / f"{who}_task-rest_run-{run}_desc-preproc_bold.nii.gz")


class TinyDna(DnaEncoder):
    """Counts neighbouring letters through a tanh; `pause_s` slows it down for the kill tests."""

    def __init__(self, seed: int = 0, max_length_bp: int | None = 400, pause_s: float = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Conv1d(5, 6, 5, padding=2)
        self.pause_s, self.lengths = pause_s, []
        self.spec = EncoderSpec(
            name="tiny_dna",
            modality="dna",
            feature_dim=6,
            input=WindowInput(max_length_bp),
            parameters=1,
            weights_id=f"random(seed={seed})",
            weights_sha256=tensors_sha256(self.state_dict()),
            code_license="none",
            weight_license="none",
        )

    def tokenize(self, sequences):
        ids = torch.tensor([["ACGTN".index(base) for base in text] for text in sequences])
        return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    def hidden(self, input_ids, mask):
        time.sleep(self.pause_s)
        self.lengths.append(tuple(input_ids.shape))
        ahead = nn.functional.one_hot(input_ids, 5).to(self.backbone.weight.dtype).mT
        back = ahead[:, [3, 2, 1, 0, 4]].flip(2)
        both = [torch.tanh(self.backbone(ahead)), torch.tanh(self.backbone(back)).flip(2)]
        return torch.stack(both, dim=-1).transpose(1, 2)


class TinyBrain(BrainEncoder):
    """A linear map of three parcels over some frames; None takes whole runs."""

    def __init__(self, frames: int | None = 12, seed: int = 0, pause_s: float = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Linear(3, 4)
        self.pause_s = pause_s
        self.spec = EncoderSpec(
            name="tiny_brain",
            modality="brain",
            feature_dim=4,
            input=ParcelInput(3, frames, needs_xyz=True, normalisation="zscore_parcel"),
            parameters=1,
            weights_id=f"random(seed={seed})",
            weights_sha256=tensors_sha256(self.state_dict()),
            code_license="none",
            weight_license="none",
        )

    def forward(self, segments, xyz=None):
        time.sleep(self.pause_s)
        return torch.tanh(self.backbone((segments * xyz[:, :, :1]).mT)).mean(1)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
