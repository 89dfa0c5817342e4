"""Writing images and tables as fMRIPrep lays them out, byte for byte reproducible."""

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

SPACE = "MNI152NLin6Asym"
MNI_CODE = 4
NIFTI_DATA_OFFSET = 352
COMPRESS_LEVEL = 1


def write_nifti(
    path: Path,
    data: np.ndarray,
    affine: np.ndarray,
    *,
    tr_s: float | None = None,
    scl_slope: float = 1.0,
    scl_inter: float = 0.0,
) -> None:
    """Write a gzipped NIfTI-1 image whose bytes depend on nothing but the arguments.

    Parameters
    ----------
    path : Path
        Ends in ``.nii.gz``.
    data : ndarray [X, Y, Z] or [X, Y, Z, T]
        Stored values, of a type NIfTI knows.
    affine : ndarray [4, 4]
        Voxel to MNI millimetres.
    tr_s : float, optional
        Repetition time in seconds, of 4D images.
    scl_slope, scl_inter : float
        Intensity is ``data * scl_slope + scl_inter``.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_qform(affine, code=MNI_CODE)
    header.set_sform(affine, code=MNI_CODE)
    header.set_xyzt_units("mm", "sec")
    if tr_s is not None:
        header["pixdim"][4] = tr_s
    header["scl_slope"] = scl_slope
    header["scl_inter"] = scl_inter
    header["vox_offset"] = NIFTI_DATA_OFFSET
    header["magic"] = b"n+1"
    raw = header.binaryblock + bytes(4) + data.tobytes(order="F")
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", COMPRESS_LEVEL, file, mtime=0) as compressed,
    ):
        compressed.write(raw)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON with sorted keys."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_tsv(path: Path, table: pd.DataFrame, *, digits: int = 6) -> None:
    """Write a tab-separated table with ``n/a`` for missing values, as BIDS wants it."""
    table.to_csv(
        path, sep="\t", index=False, na_rep="n/a", float_format=f"%.{digits}g", lineterminator="\n"
    )


def write_number_tsv(path: Path, table: pd.DataFrame, *, digits: int = 6) -> None:
    """Write a table of numbers alone as `write_tsv` does, many times faster than pandas."""
    line = "\t".join([f"%.{digits}g"] * table.shape[1])
    rows = [line % tuple(row) for row in table.to_numpy(dtype=np.float64).tolist()]
    body = "\n".join(rows).replace("nan", "n/a")
    path.write_text("\t".join(table.columns) + "\n" + body + "\n", encoding="utf-8")


def write_dataset_description(folder: Path) -> None:
    """Write what BIDS asks of a folder of derivatives."""
    write_json(
        folder / "dataset_description.json",
        {
            "Name": "Simulated resting-state fMRI, laid out as fMRIPrep does",
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "genebold simulate", "Description": "No real brain."}],
        },
    )
