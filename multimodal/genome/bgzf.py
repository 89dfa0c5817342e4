"""What a file's first and last bytes say: gzip, bgzip, whole or cut short."""

from pathlib import Path

# The empty block that ends every BGZF file: SAM/BAM format specification, section 4.1.2.
_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def is_gzip(path: Path) -> bool:
    """Tell whether the file starts as a gzip (or bgzip) file does."""
    return _head(path)[:2] == b"\x1f\x8b"


def is_bgzf(path: Path) -> bool:
    """Tell whether the file is in blocked gzip (bgzip), so that an index can point into it."""
    head = _head(path)
    return is_gzip(path) and len(head) >= 16 and bool(head[3] & 4) and head[12:14] == b"BC"


def is_whole_bgzf(path: Path) -> bool:
    """Tell whether a bgzip file ends with its end-of-file block; one cut short does not."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        handle.seek(max(0, size - len(_END)))
        return handle.read() == _END


def _head(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(18)
