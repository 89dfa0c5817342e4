"""Triton's CPU interpreter, made fast enough for tests; pytest can load it (-p)."""

import os

import numpy as np


def scan_whole_rows() -> None:
    """Let the interpreter's scans combine whole rows at a time; it goes number by number."""
    from triton.runtime.interpreter import ScanOps

    def generic_scan(self, inputs):
        given = [np.moveaxis(tensor.handle.data, self.axis, 0) for tensor in inputs]
        types = [tensor.dtype for tensor in inputs]
        results = [values.copy() for values in given]
        for row in range(1, len(given[0])):
            before = [self.to_tensor(v[row - 1], t) for v, t in zip(results, types, strict=True)]
            own = [self.to_tensor(v[row], t) for v, t in zip(given, types, strict=True)]
            combined = self.combine_fn.fn(*before, *own)
            for values, found in zip(results, combined, strict=True):
                values[row] = found.handle.data
        moved = [np.ascontiguousarray(np.moveaxis(v, 0, self.axis)) for v in results]
        return [self.to_tensor(v, t) for v, t in zip(moved, types, strict=True)]

    assert hasattr(ScanOps, "generic_scan")
    ScanOps.generic_scan = generic_scan


if os.environ.get("TRITON_INTERPRET") == "1":
    scan_whole_rows()
