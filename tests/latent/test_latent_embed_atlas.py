"""The atlas of new scans: the bundle's, whether or not its table is named."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from encoders.errors import InputError
from multimodal.bold.parcels import load_atlas
from multimodal.features.encode import atlas_fingerprint
from multimodal.latent.atlas import atlas_table


@pytest.fixture
def image(tmp_path: Path) -> Path:
    labels = np.zeros((4, 4, 4), dtype=np.int16)
    labels[0], labels[2] = 1, 2
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "atlas.nii.gz")
    (tmp_path / "atlas.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    return tmp_path / "atlas.nii.gz"


def test_a_table_beside_the_image_is_found(image: Path) -> None:
    table = image.with_name("atlas.tsv")
    wanted = atlas_fingerprint(load_atlas(image, table))
    assert atlas_table(image, None, wanted) == table
    assert atlas_table(image, table, wanted) == table
    assert atlas_table(image, None, atlas_fingerprint(load_atlas(image))) is None


def test_a_table_left_out_is_said_with_its_key(image: Path) -> None:
    table = image.with_name("atlas.tsv")
    wanted = atlas_fingerprint(load_atlas(image, table))
    table.unlink()
    with pytest.raises(InputError, match=r"set cohort\.atlas_table"):
        atlas_table(image, None, wanted)


def test_a_table_too_many_is_said(image: Path) -> None:
    with pytest.raises(InputError, match="trained without a table"):
        atlas_table(image, image.with_name("atlas.tsv"), atlas_fingerprint(load_atlas(image)))
