"""Parquet files that hold vectors: whole or absent, the same bytes for the same content."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.atomic import replace_file

_GROUP_BYTES = 32 * 2**20
_INPUTS = b"inputs"


def vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    """Return the rows of a matrix [n, D] as a column of fixed-size lists of float32."""
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of fixed-size lists as a matrix [n, D] float32."""
    flat = [chunk.flatten().to_numpy() for chunk in column.chunks]
    size = column.type.list_size
    return np.concatenate([np.empty(0, dtype=np.float32), *flat]).reshape(len(column), size)


def texts(values: np.ndarray | list[str], codes: np.ndarray | None = None) -> pa.DictionaryArray:
    """Return strings as a dictionary-encoded column, given whole or as codes into `values`."""
    if codes is None:
        return pa.array(values, type=pa.string()).dictionary_encode()
    indices = pa.array(codes, type=pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array(values, type=pa.string()))


def write_shard(path: Path, columns: Mapping[str, pa.Array], inputs: str) -> None:
    """Write a Parquet file under a temporary name, sync it and rename it.

    Parameters
    ----------
    path : Path
    columns : mapping of str to pyarrow.Array
    inputs : str
        Digest of what the shard was made from; `shard_inputs` gives it back.
    """
    table = pa.table(dict(columns)).replace_schema_metadata({_INPUTS: inputs.encode()})
    rows = max(1, _GROUP_BYTES * max(1, table.num_rows) // max(1, table.nbytes))
    text = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    replace_file(
        path,
        lambda temporary: pq.write_table(
            table,
            temporary,
            row_group_size=rows,
            compression="zstd",
            use_dictionary=text,
            write_statistics=text,
        ),
    )


def shard_inputs(path: Path) -> str | None:
    """Return the digest a shard was written with; None where there is no such file."""
    if not path.exists():
        return None
    metadata = pq.read_schema(path).metadata or {}
    return metadata.get(_INPUTS, b"").decode()
