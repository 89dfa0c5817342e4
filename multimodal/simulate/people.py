"""Who is in the cohort: families, sites, ancestries, sex and age."""

from dataclasses import dataclass

import numpy as np

from multimodal.simulate.options import SimulationOptions

# One round of families: name, size, relatedness (twice the kinship coefficient).
FAMILY_ROUND = (
    ("siblings", 2, 0.5),
    ("monozygotic", 2, 1.0),
    ("siblings", 2, 0.5),
    ("siblings", 3, 0.5),
    ("dizygotic", 2, 0.5),
)


@dataclass(frozen=True)
class People:
    """Participants, in the order they were generated (no file keeps that order).

    Parameters
    ----------
    family : ndarray [n] int64
        Family of each participant, from 0; people without relatives are families of one.
    kind : list of str
        What each family is: "single", "siblings", "dizygotic" or "monozygotic".
    relatedness : ndarray [n] float64
        Share of the genome a participant has in common with each family member: 0, 0.5 or 1.
    ancestry, site : ndarray [n] int64
    sex : ndarray [n] str
        "F" or "M".
    age : ndarray [n] float64
        In years.
    """

    family: np.ndarray
    kind: list[str]
    relatedness: np.ndarray
    ancestry: np.ndarray
    site: np.ndarray
    sex: np.ndarray
    age: np.ndarray

    def __len__(self) -> int:
        return len(self.family)

    def members(self) -> list[np.ndarray]:
        """Return the participants (rows) of each family."""
        order = np.argsort(self.family, kind="stable")
        starts = np.searchsorted(self.family[order], np.arange(1, len(self.kind)))
        return np.split(order, starts)


def draw_people(options: SimulationOptions) -> People:
    """Draw a cohort with families, filling sites, ancestries and sexes to their shares."""
    kinds, sizes, relatedness = _family_plan(options)
    return _draw(options, kinds, sizes, relatedness, None)


def people_of_samples(options: SimulationOptions, ancestry: np.ndarray) -> People:
    """Give unrelated people of known `ancestry` [n] a site, a sex and an age."""
    n = len(ancestry)
    return _draw(options, ["single"] * n, np.ones(n, dtype=np.int64), np.zeros(n), ancestry)


def site_by_ancestry(options: SimulationOptions, ancestry_shares: np.ndarray) -> np.ndarray:
    """Return the fraction of participants in each cell, [ancestries, sites].

    Independent in `signal` and `null`. In `confounded`, `off_diagonal` of each ancestry is spread
    over the sites that the ancestry does not go with.
    """
    if options.world != "confounded":
        return np.outer(ancestry_shares, options.site_shares)
    k = options.sites
    away = options.off_diagonal / (k - 1)
    conditional = np.full((k, k), away) + np.eye(k) * (1.0 - options.off_diagonal - away)
    return ancestry_shares[:, None] * conditional


def _family_plan(options: SimulationOptions) -> tuple[list[str], np.ndarray, np.ndarray]:
    wanted = round(options.family_fraction * options.subjects)
    kinds: list[str] = []
    sizes: list[int] = []
    relatedness: list[float] = []
    placed = 0
    for turn in range(options.subjects):
        kind, size, related = FAMILY_ROUND[turn % len(FAMILY_ROUND)]
        if placed + size > wanted:
            break
        kinds.append(kind)
        sizes.append(size)
        relatedness.append(related)
        placed += size
    singles = options.subjects - placed
    return (
        kinds + ["single"] * singles,
        np.array(sizes + [1] * singles, dtype=np.int64),
        np.array(relatedness + [0.0] * singles),
    )


def _draw(
    options: SimulationOptions,
    kinds: list[str],
    sizes: np.ndarray,
    relatedness: np.ndarray,
    known_ancestry: np.ndarray | None,
) -> People:
    rng = options.people_stream("people")
    family = np.repeat(np.arange(len(sizes)), sizes)
    if known_ancestry is None:
        shares = np.asarray(options.shares())
    else:
        shares = np.bincount(known_ancestry, minlength=options.ancestries) / len(known_ancestry)
    deficit = site_by_ancestry(options, shares) * sizes.sum()
    ancestry = np.zeros(len(sizes), dtype=np.int64)
    site = np.zeros(len(sizes), dtype=np.int64)
    # Families first: what is left of each cell is then filled exactly by people without relatives.
    order = rng.permutation(len(sizes))
    for unit in order[np.argsort(-sizes[order], kind="stable")]:
        open_cells = deficit.copy()
        if known_ancestry is not None:
            open_cells[np.arange(len(shares)) != known_ancestry[unit]] = -np.inf
        cell = int(np.argmax(open_cells))
        ancestry[unit], site[unit] = np.unravel_index(cell, deficit.shape)
        deficit[ancestry[unit], site[unit]] -= sizes[unit]
    sex = _draw_sex(rng, kinds, family, ancestry[family] * options.sites + site[family])
    return People(
        family=family,
        kind=kinds,
        relatedness=relatedness[family],
        ancestry=ancestry[family],
        site=site[family],
        sex=sex,
        age=_draw_age(rng, kinds, family),
    )


def _draw_sex(
    rng: np.random.Generator, kinds: list[str], family: np.ndarray, cell: np.ndarray
) -> np.ndarray:
    """Balance the sexes within each cell of site and ancestry; identical twins share theirs."""
    surplus = np.zeros(int(cell.max()) + 1, dtype=np.int64)
    female = np.zeros(len(family), dtype=bool)
    for row in range(len(family)):
        previous = row - 1
        if (
            previous >= 0
            and family[previous] == family[row]
            and kinds[family[row]] == "monozygotic"
        ):
            female[row] = female[previous]
        elif surplus[cell[row]] == 0:
            female[row] = rng.random() < 0.5
        else:
            female[row] = surplus[cell[row]] < 0
        surplus[cell[row]] += 1 if female[row] else -1
    return np.where(female, "F", "M")


def _draw_age(rng: np.random.Generator, kinds: list[str], family: np.ndarray) -> np.ndarray:
    """Ages from 45 to 80 years; twins share theirs, siblings differ by a few years."""
    of_family = rng.uniform(47.0, 78.0, len(kinds))[family]
    apart = rng.uniform(-4.0, 4.0, len(family))
    is_sibling = np.array([kinds[f] == "siblings" for f in family])
    return np.round(np.clip(of_family + np.where(is_sibling, apart, 0.0), 45.0, 80.0), 1)
