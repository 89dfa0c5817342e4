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
    return _generator(seed, _code(name), *numbers)


def people_stream(
    seed: int, people_seed: int | None, name: str, *numbers: int
) -> np.random.Generator:
    """Return the generator of a named part that differs from one group of people to the next.

    Parameters
    ----------
    seed, name, numbers : see `stream`
    people_seed : int or None
        Number of the group; None is the first one, whose parts are those of `stream`.
    """
    if people_seed is None:
        return stream(seed, name, *numbers)
    return _generator(seed, _code("new people"), people_seed, _code(name), *numbers)


def _code(name: str) -> int:
    return zlib.crc32(name.encode())


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))
