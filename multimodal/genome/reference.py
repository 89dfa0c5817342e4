"""The reference genome: an indexed FASTA."""

import os
from pathlib import Path
from typing import Any

import pysam

from encoders.errors import InputError, Problem
from multimodal.genome.bgzf import is_bgzf, is_gzip
from multimodal.genome.naming import chromosome_problem


class Reference:
    """An indexed FASTA, plain or bgzipped; nothing is ever written beside it.

    Copies in other processes (by fork or pickle) open the file anew.

    Parameters
    ----------
    path : path
        ``.fa`` with its ``.fai``, or ``.fa.gz`` with its ``.fai`` and ``.gzi``.

    Attributes
    ----------
    path : Path
    lengths : dict of str to int
        Bases of each chromosome, in file order.

    Raises
    ------
    InputError
        ``fasta-missing``, ``fasta-no-index`` or ``fasta-unreadable``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        _check_index(self.path)
        self._owner = 0
        self._file: Any = None
        handle = self._handle()
        self.lengths: dict[str, int] = dict(zip(handle.references, handle.lengths, strict=True))

    def fetch(self, chrom: str, start_bp: int, end_bp: int) -> str:
        """Return the bases ``start_bp`` to ``end_bp`` (0-based, half-open), in upper case.

        Raises
        ------
        InputError
            ``chromosome-naming``, ``chromosome-missing``, ``region-out-of-range``, or
            ``fasta-unreadable`` where the file holds fewer bases than its index says.
        """
        self.require(chrom, start_bp, end_bp)
        if start_bp == end_bp:
            return ""
        try:
            bases: str = self._handle().fetch(chrom, start_bp, end_bp).upper()
        except (OSError, ValueError) as error:
            raise InputError(self._unreadable(str(error))) from error
        if len(bases) != end_bp - start_bp:
            found = f"{len(bases):,} of {end_bp - start_bp:,} bases at {chrom}:{start_bp + 1:,}"
            raise InputError(self._unreadable(found))
        return bases

    def require(self, chrom: str, start_bp: int, end_bp: int) -> None:
        """Raise as `fetch` does where the FASTA has no such interval."""
        problem = chromosome_problem(chrom, self.lengths, str(self.path), "FASTA")
        if problem is not None:
            raise InputError(problem)
        if not 0 <= start_bp <= end_bp <= self.lengths[chrom]:
            raise InputError(
                Problem(
                    "region-out-of-range",
                    str(self.path),
                    f"bases {start_bp:,} to {end_bp:,} of {chrom} are asked for",
                    f"{chrom} has {self.lengths[chrom]:,} bases",
                    "check that regions and FASTA are of one genome build",
                )
            )

    def _unreadable(self, found: str) -> Problem:
        return Problem(
            "fasta-unreadable",
            str(self.path),
            f"it cannot be read as its index says ({found})",
            "a whole FASTA and the index made from it",
            f"copy it again, or index it again: samtools faidx {self.path}",
        )

    def _handle(self) -> Any:
        # A file offset shared between forked processes gives bases from the wrong place.
        if self._file is None or self._owner != os.getpid():
            level = pysam.set_verbosity(0)
            try:
                self._file = pysam.FastaFile(str(self.path))
            except (OSError, ValueError) as error:
                raise InputError(self._unreadable(str(error))) from error
            finally:
                pysam.set_verbosity(level)
            self._owner = os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _check_index(path: Path) -> None:
    if not path.is_file():
        raise InputError(
            Problem("fasta-missing", str(path), "no such file", "a reference FASTA is needed")
        )
    compressed = is_gzip(path)
    if compressed and not is_bgzf(path):
        raise InputError(
            Problem(
                "fasta-unreadable",
                str(path),
                "compressed with gzip",
                "plain FASTA, or FASTA compressed with bgzip (gzip allows no access by position)",
                f"gunzip -c {path} | bgzip > NEW.fa.gz && samtools faidx NEW.fa.gz",
            )
        )
    wanted = [".fai", ".gzi"] if compressed else [".fai"]
    missing = [suffix for suffix in wanted if not Path(f"{path}{suffix}").is_file()]
    if missing:
        raise InputError(
            Problem(
                "fasta-no-index",
                str(path),
                f"no {' and no '.join(path.name + suffix for suffix in missing)} beside it",
                "an indexed FASTA",
                f"make the index: samtools faidx {path}",
            )
        )
