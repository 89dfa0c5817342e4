"""Named random streams: what one part draws never moves what another part draws."""

import zlib

import numpy as np


def stream(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """Return the generator of a named part of a simulation.

    Parameters
    ----------
    seed : int
        Seed of the whole simulation, not negative.
    name : str
        Name of the part, e.g. ``"genotypes"``.
    *numbers : int
        Further coordinates, e.g. the subject and the run.

    Returns
    -------
    numpy.random.Generator
        Independent of the generator of every other name and number (`numpy.random.SeedSequence`
        with its own spawn key), so that adding a part leaves the others as they were.
    """
    key = (zlib.crc32(name.encode()), *numbers)
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))
