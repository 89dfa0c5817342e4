"""DNA strings: their hash, their reverse complement, their reading direction."""

import hashlib

_COMPLEMENT = bytes.maketrans(
    b"ACGTURYSWKMBDHVNacgturyswkmbdhvn",
    b"TGCAAYRSWMKVHDBNtgcaayrswmkvhdbn",
)


def sequence_hash(sequence: str) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of `sequence`.

    Parameters
    ----------
    sequence : str
        ASCII letters; upper and lower case count as different.
    """
    return hashlib.sha256(sequence.encode("ascii")).hexdigest()[:32]


def reverse_complement(sequence: str) -> str:
    """Return `sequence` read from the other strand.

    Parameters
    ----------
    sequence : str
        DNA in IUPAC letters, either case (kept); U counts as T. Other characters stay as they are.

    References
    ----------
    Cornish-Bowden A. Nomenclature for incompletely specified bases in nucleic acid sequences.
    Nucleic Acids Research 13:3021 (1985).
    """
    return sequence.encode("ascii").translate(_COMPLEMENT)[::-1].decode("ascii")


def oriented(sequence: str, strand: str) -> str:
    """Return a genomic-forward `sequence` as a gene on `strand` reads it.

    Parameters
    ----------
    sequence : str
        Genomic-forward DNA.
    strand : {"+", "-", "."}
        "-" gives the reverse complement; "." (no strand) reads forward.

    Raises
    ------
    ValueError
        `strand` is something else.
    """
    if strand not in {"+", "-", "."}:
        raise ValueError(f"strand is {strand!r}; it must be '+', '-' or '.'")
    return reverse_complement(sequence) if strand == "-" else sequence
