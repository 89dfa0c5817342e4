"""Tiny scans and derivatives folders, made by hand."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd

from multimodal.bold.bids import BoldRun
from multimodal.bold.options import BoldOptions
from multimodal.bold.parcels import Atlas, load_atlas

SHAPE = (6, 5, 4)
AFFINE = np.array([[3.0, 0, 0, -8], [0, 3, 0, -6], [0, 0, 3, -4], [0, 0, 0, 1]])
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
RAW = BoldOptions(
    use_mask=False,
    motion="none",
    wm_csf="none",
    detrend=False,
    filter="none",
    high_pass_hz=None,
    fd_threshold_mm=None,
    min_frames=2,
)


def parcel_input(**fields: object) -> SimpleNamespace:
    """Stand in for `encoders.base.ParcelInput`, so that these tests need no torch."""
    defaults = {
        "parcels": None,
        "frames": None,
        "tr_s": None,
        "space": None,
        "atlas": None,
        "order": "atlas",
        "needs_xyz": False,
        "normalisation": "none",
        "statistics": {},
    }
    return SimpleNamespace(**{**defaults, **fields})


def atlas_labels() -> np.ndarray:
    """Four slabs along x with labels 1, 2, 5 and 9, one plane of background on each side."""
    labels = np.zeros(SHAPE, dtype=np.int16)
    for x, label in zip(range(1, 5), (1, 2, 5, 9), strict=True):
        labels[x] = label
    return labels


def volumes(frames: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 1000 + 50 * rng.standard_normal((*SHAPE, frames))


def save(
    data: np.ndarray,
    path: Path,
    *,
    tr: float = 2.0,
    unit: str = "sec",
    affine: np.ndarray = AFFINE,
    dtype: type = np.float64,
) -> Path:
    image = nib.Nifti1Image(np.asarray(data), affine, dtype=dtype)
    if data.ndim == 4:
        image.header.set_xyzt_units("mm", unit)
        image.header["pixdim"][4] = tr
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def confounds_table(frames: int, seed: int = 1) -> pd.DataFrame:
    """Write what the smallest fMRIPrep-like file has, first differences n/a."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"csf": rng.normal(size=frames), "white_matter": rng.normal(size=frames)})
    table["global_signal"] = rng.normal(size=frames)
    for name in MOTION:
        scale = 1e-2 if name.startswith("trans") else 1e-4
        table[name] = np.cumsum(scale * rng.normal(size=frames))
        table[f"{name}_derivative1"] = table[name].diff()
        table[f"{name}_power2"] = table[name] ** 2
        table[f"{name}_derivative1_power2"] = table[f"{name}_derivative1"] ** 2
    change = table[list(MOTION)].diff().abs() * np.array([1, 1, 1, 50, 50, 50])
    table["framewise_displacement"] = change.sum(axis=1, skipna=False)
    table["std_dvars"] = np.r_[np.nan, rng.uniform(0.8, 1.2, frames - 1)]
    table["cosine00"] = np.cos(np.pi * (np.arange(frames) + 0.5) / frames)
    return table


@dataclass
class Bench:
    """A folder with an atlas and as many runs as a test makes."""

    folder: Path
    atlas: Atlas = field(init=False)

    def __post_init__(self) -> None:
        self.atlas = load_atlas(save(atlas_labels(), self.folder / "atlas.nii.gz", dtype=np.int16))

    def run(
        self,
        data: np.ndarray | None = None,
        *,
        name: str = "01",
        confounds: pd.DataFrame | None = None,
        mask: np.ndarray | None = None,
        tr_s: float | None = 2.0,
        suffix: str = ".nii.gz",
        **image: object,
    ) -> BoldRun:
        """Write a run (40 frames of noise unless told otherwise) and describe it."""
        data = volumes(40) if data is None else data
        bold = save(data, self.folder / f"{name}_bold{suffix}", **image)  # type: ignore[arg-type]
        paths: dict[str, Path | None] = {"mask": None, "confounds": None}
        if mask is not None:
            paths["mask"] = save(mask, self.folder / f"{name}_mask.nii.gz", dtype=np.uint8)
        if confounds is not None:
            paths["confounds"] = self.folder / f"{name}_confounds.tsv"
            confounds.to_csv(paths["confounds"], sep="\t", na_rep="n/a", index=False)
        return BoldRun(f"sub-{name}", "", "", bold, paths["mask"], paths["confounds"], tr_s)


def write_recording(
    root: Path, stem: str, *, frames: int = 40, tr_s: float | None = 2.0, mask: bool = True
) -> Path:
    """Write one recording into a derivatives folder, as fMRIPrep names its files."""
    entities = dict(part.split("-") for part in stem.split("_"))
    folder = root / f"sub-{entities['sub']}"
    folder = (folder / f"ses-{entities['ses']}" if "ses" in entities else folder) / "func"
    bold = save(volumes(frames), folder / f"{stem}_desc-preproc_bold.nii.gz")
    if mask:
        save(np.ones(SHAPE), folder / f"{stem}_desc-brain_mask.nii.gz", dtype=np.uint8)
    versions = ("space", "res", "echo")
    shared = "_".join(p for p in stem.split("_") if p.split("-")[0] not in versions)
    table = folder / f"{shared}_desc-confounds_timeseries.tsv"
    confounds_table(frames).to_csv(table, sep="\t", na_rep="n/a", index=False)
    table.with_suffix(".json").write_text("{}")
    if tr_s is not None:
        sidecar = folder / f"{stem}_desc-preproc_bold.json"
        sidecar.write_text(json.dumps({"RepetitionTime": tr_s}))
    return bold
