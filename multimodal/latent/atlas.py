"""The atlas of new scans: the bundle's, whether or not its table is named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encoders.errors import InputError, Problem


def atlas_table(image: Path, given: Path | None, wanted: Mapping[str, Any]) -> Path | None:
    """Return the table that makes the label image the bundle's atlas.

    Where none is given, ``atlas.tsv`` (or the image's own name) beside the image is tried too.

    Raises
    ------
    InputError
        No table does.
    """
    from multimodal.bold.parcels import load_atlas
    from multimodal.features.encode import atlas_fingerprint

    tried: list[Path | None] = [given]
    if given is None:
        own = image.with_name(image.name.split(".")[0] + ".tsv")
        beside = dict.fromkeys([image.with_name("atlas.tsv"), own])
        tried += [path for path in beside if path.is_file()]
    found = [atlas_fingerprint(load_atlas(image, table)) for table in tried]
    if wanted in found:
        return tried[found.index(dict(wanted))]
    fix = "use the label image and table the bundle was trained with"
    if given is None and found[0]["parcels"] == wanted["parcels"]:
        fix = (
            "the number of parcels agrees, and no table of their names and centres is given: "
            "set cohort.atlas_table to the one the bundle was trained with"
        )
    elif given is not None and atlas_fingerprint(load_atlas(image)) == wanted:
        fix = f"the bundle was trained without a table: leave {given} out"
    raise InputError(
        Problem(
            "other-atlas",
            str(image),
            f"{found[-1]['parcels']} parcels, digest {found[-1]['sha256'][:12]}",
            f"the bundle's atlas: {wanted['parcels']} parcels, digest {wanted['sha256'][:12]}",
            fix,
        )
    )
