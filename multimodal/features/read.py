"""Reading the feature store: from Parquet shards to the arrays that the towers take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.errors import InputError, Problem
from multimodal.features.shards import matrix
from multimodal.features.store import read_fingerprint
from multimodal.features.tables import BrainFeatures, GeneFeatures

_STRANDS = 2


def stored_participants(store_path: str | Path) -> list[str]:
    """Return the participants that a store has features of, in its order."""
    store = Path(store_path)
    read_fingerprint(store)
    for folder in ("carriers", "regions"):
        first = sorted((store / folder).glob("*.parquet"))[:1]
        if first:
            return _distinct(_read(first[0], ["subject"])["subject"])
    found = [_distinct(_read(path, ["subject"])["subject"]) for path in _shards(store, "segments")]
    return [who for part in found for who in part]


def read_genotype_calls(store_path: str | Path) -> pd.DataFrame:
    """Return the counts that `multimodal.features.genotype_calls.sum_counts` made."""
    store = Path(store_path)
    read_fingerprint(store)
    calls: pd.DataFrame = _read(store / "calls" / "000000.parquet").to_pandas()
    return calls.astype({"subject": object})


def read_dosage_variants(store_path: str | Path) -> list[str]:
    """Return ``chrom:position:ref:alt`` of each column of a dosage store's features."""
    store = Path(store_path)
    read_fingerprint(store)
    names: list[str] = _read(store / "variants" / "000000.parquet")["variant"].to_pylist()
    return names


def read_gene_features(
    store_path: str | Path, participant_ids: Sequence[str] | None = None
) -> GeneFeatures:
    """Read the gene-side features of a store.

    Parameters
    ----------
    store_path : path
        ``DIR/dna/<encoder>`` or ``DIR/dna/dosage``.
    participant_ids : sequence of str, optional
        Who, in this order; by default all in the store's order. `stored_participants` tells who
        is there.

    Returns
    -------
    GeneFeatures
        Of an encoder: row 0 of ``distinct`` is the reference's difference from itself, zero.
        Of dosages: one window, ``"dosage"``, of all regions' alleles side by side.

    Raises
    ------
    InputError
        No complete store, or participants that are not in it (all named).
    """
    store = Path(store_path)
    who = _chosen(store, participant_ids)
    if (store / "regions").is_dir():
        return _read_dosages(store, who)
    lookup = pd.Index(who)
    names: list[str] = []
    distinct: list[np.ndarray] = []
    index: list[np.ndarray] = []
    size = 1
    for number, path in enumerate(_shards(store, "carriers")):
        reference = _read(store / "reference" / path.name)
        names.append(f"{reference['region'][0].as_py()}:{reference['window'][0].as_py()}")
        shards = sorted((store / "windows").glob(f"{number:06d}-*.parquet"))
        window = pa.concat_tables(_read(shard, ["sequence_hash", "feature"]) for shard in shards)
        rows = _carried(_read(path, ["subject", "haplotype", "sequence_hash"]), window, lookup)
        used, inverse = np.unique(rows, return_inverse=True)
        # The first row of a window is its reference, which row 0 stands for in all of them.
        others = used[used > 0]
        place = np.concatenate([np.zeros(len(used) - len(others), dtype=np.int64),
                                size + np.arange(len(others))])  # fmt: skip
        index.append(place[inverse].reshape(rows.shape))
        distinct.append(matrix(window["feature"])[others])
        size += len(others)
    dim = distinct[0].shape[1]
    values = np.concatenate([np.zeros((1, dim), dtype=np.float32), *distinct])
    return GeneFeatures(
        who, names, values.reshape(len(values), _STRANDS, -1), np.stack(index, axis=1)
    )


def read_brain_features(
    store_path: str | Path, participant_ids: Sequence[str] | None = None
) -> BrainFeatures:
    """Read the brain-side features of a store.

    Parameters
    ----------
    store_path : path
        ``DIR/brain/<encoder>``.
    participant_ids : sequence of str, optional
        Who, in this order; by default all in the store's order. `stored_participants` tells who
        is there.

    Raises
    ------
    InputError
        No complete store, or participants that are not in it (all named).
    """
    store = Path(store_path)
    return _read_segments(_shards(store, "segments"), _chosen(store, participant_ids))


@dataclass(frozen=True)
class BrainBlock:
    """Some whole shards of a brain store, with all segments of those in them.

    Parameters
    ----------
    participant_ids : list of str
        In the store's order.
    shards : list of Path
    """

    participant_ids: list[str]
    shards: list[Path]

    def read(self) -> BrainFeatures:
        """Return the features, as `read_brain_features` does."""
        return _read_segments(self.shards, self.participant_ids)


def brain_blocks(store_path: str | Path, subjects: int) -> list[BrainBlock]:
    """Divide a complete brain store into blocks, to be read one at a time.

    Parameters
    ----------
    store_path : path
    subjects : int
        Most subjects in a block, unless a shard holds more.
    """
    store = Path(store_path)
    read_fingerprint(store)
    blocks: list[BrainBlock] = []
    for path in _shards(store, "segments"):
        inside = _distinct(_read(path, ["subject"])["subject"])
        if blocks and len(blocks[-1].participant_ids) + len(inside) <= subjects:
            blocks[-1].participant_ids.extend(inside)
            blocks[-1].shards.append(path)
        else:
            blocks.append(BrainBlock(inside, [path]))
    return blocks


def _read_segments(shards: Sequence[Path], who: list[str]) -> BrainFeatures:
    lookup = pd.Index(who)
    rows, values, mean_fd, new_run = [], [], [], []
    for path in shards:
        table = _read(path)
        row = _codes(table["subject"], lookup)
        keep = np.flatnonzero(row >= 0)
        rows.append(row[keep])
        values.append(matrix(table["feature"])[keep])
        mean_fd.append(table["mean_fd_mm"].to_numpy()[keep])
        new_run.append(_first_segments(table)[keep])
    subject = np.concatenate(rows)
    # Stable, and a subject's segments lie in one shard, so runs and segments keep their order.
    order = np.argsort(subject, kind="stable")
    subject = subject[order]
    run = np.cumsum(np.concatenate(new_run)[order]) - 1
    first = np.searchsorted(subject, np.arange(len(who)))
    return BrainFeatures(
        who,
        np.concatenate(values)[order],
        subject,
        run - run[first][subject],
        np.nan_to_num(np.concatenate(mean_fd)[order]).astype(np.float32),
    )


def _read_dosages(store: Path, who: list[str]) -> GeneFeatures:
    lookup = pd.Index(who)
    regions = []
    for path in _shards(store, "regions"):
        table = _read(path)
        if "feature" in table.column_names:
            row = _codes(table["subject"], lookup)
            values = np.empty((len(who), table["feature"].type.list_size), dtype=np.float32)
            values[row[row >= 0]] = matrix(table["feature"])[row >= 0]
            regions.append(values)
    dosages = np.ascontiguousarray(np.hstack(regions))
    whole = dosages.view(np.dtype((np.void, dosages.itemsize * dosages.shape[1])))[:, 0]
    # Equal genotypes share a row, so that they get bit-equal latents.
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    index = inverse.astype(np.int64)[:, None, None]
    return GeneFeatures(who, ["dosage"], dosages[first][:, None, :], index)


def _carried(carriers: pa.Table, window: pa.Table, who: pd.Index) -> np.ndarray:
    """Return the row of `window` for each subject and haplotype [n, 2]."""
    subject = _codes(carriers["subject"], who)
    row = _codes(carriers["sequence_hash"], pd.Index(window["sequence_hash"].to_pandas()))
    inside = subject >= 0
    rows = np.full((len(who), 2), -1, dtype=np.int64)
    rows[subject[inside], carriers["haplotype"].to_numpy()[inside]] = row[inside]
    if (rows < 0).any():
        raise RuntimeError("a carrier's sequence is not among the window's; the store is damaged")
    return rows


def _first_segments(table: pa.Table) -> np.ndarray:
    """Tell which rows begin a run."""
    codes = [
        column.combine_chunks().indices.to_numpy()
        for column in (table[name].unify_dictionaries() for name in ("subject", "session", "run"))
    ]
    changes = np.any([np.diff(code, prepend=-1) != 0 for code in codes], axis=0)
    return changes.astype(np.int64)


def _codes(column: pa.ChunkedArray, lookup: pd.Index) -> np.ndarray:
    """Return each value's place in `lookup`, -1 where it has none."""
    column = column.unify_dictionaries()
    codes = [chunk.indices.to_numpy() for chunk in column.chunks]
    if not codes:
        return np.empty(0, dtype=np.int64)
    place = lookup.get_indexer(pd.Index(column.chunk(0).dictionary.to_pandas()))
    return place[np.concatenate(codes)].astype(np.int64)


def _chosen(store: Path, participant_ids: Sequence[str] | None) -> list[str]:
    stored = stored_participants(store)
    if participant_ids is None:
        return stored
    if len(set(participant_ids)) < len(participant_ids):
        raise ValueError("participant_ids names someone twice")
    known = set(stored)
    absent = [who for who in participant_ids if who not in known]
    if absent:
        raise InputError(
            Problem(
                "features-absent",
                str(store),
                f"{len(absent)} participants have no features here, {', '.join(absent[:5])}"
                + (" ..." if len(absent) > 5 else ""),
                f"participants among the {len(stored)} encoded",
                "leave them out, or encode them too",
            )
        )
    return list(participant_ids)


def _distinct(column: pa.ChunkedArray) -> list[str]:
    return [str(who) for who in column.unique().to_pylist()]


def _shards(store: Path, kind: str) -> list[Path]:
    return sorted((store / kind).glob("[0-9]*.parquet"))


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    # Half the time of read_table, which looks for a data set of many files behind each name.
    return pq.ParquetFile(path).read(columns=columns)
