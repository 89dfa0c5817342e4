"""``genebold embed``: latents for new subjects from a bundle, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from encoders.atomic import write_text
from encoders.errors import InputError, Problem
from multimodal.cohort.table import Cohort
from multimodal.features.crew import Crew, Takes
from multimodal.features.progress import progress_bar
from multimodal.latent.bundle import Bundle, read_bundle
from multimodal.latent.embed import (
    SIDES,
    Block,
    brain_blocks,
    embed_brains,
    embed_genomes,
    genome_blocks,
    new_cohort,
    with_atlas_of,
)
from multimodal.latent.encoders import load_bundle_encoder
from multimodal.latent.processes import assist, crew_of, device_of
from multimodal.latent.shards import LatentShards
from multimodal.latent.table import Latents
from multimodal.verbs.console import Stages, say, warn
from multimodal.verbs.settings import cohort_paths, plain

ON_ERROR = ("continue", "stop")
_SHOWN = 20


def run(config: DictConfig) -> int:
    """Embed the sides that have files, and write ``latents.parquet``.

    Several processes share the features to encode and the blocks of latents.

    Returns
    -------
    int
        1 where somebody was left out because of bad files, else 0.
    """
    sides = _sides(config)
    settings = plain(config)
    with crew_of(int(config.processes), warn, _take_part, settings, sides) as crew:
        if crew.is_first:
            return _embed(config, sides, crew)
        _take_part(crew, settings, sides)
    return 0


def _take_part(crew: Crew, settings: dict[str, Any], sides: list[str]) -> None:
    """Embed as one of the processes that are not the first."""
    assist(crew, lambda: _embed(OmegaConf.create(settings), sides, crew))


def _embed(config: DictConfig, sides: list[str], crew: Crew) -> int:
    bundle = read_bundle(config.bundle, revision=config.revision)
    paths = cohort_paths(config.cohort)
    has = {"gene": paths.genotypes is not None, "brain": paths.bold is not None}
    sides = [side for side in SIDES if side in sides and has[side]]
    cohort = new_cohort(paths, sides)
    if config.participants is not None:
        cohort = _chosen(cohort, [str(who) for who in config.participants])
    if "brain" in sides:
        with_atlas_of(bundle, cohort)  # refused before genomes are encoded for hours
    bad = BadParticipants(stop=config.on_error == "stop")
    job = _Job(bundle, cohort, config, bad, crew)
    shards = LatentShards(Path(config.latents), tidy=crew.is_first)
    done = {side: _embed_side(side, job, shards) for side in sides}
    if not crew.is_first:
        return 0
    if not any(done.values()):
        raise InputError(bad.problems())
    bad.write(Path(config.latents).with_name("failed.tsv"))
    prints = shards.join()
    _say_done(done, prints, Path(config.latents))
    bad.say()
    return 1 if bad else 0


class BadParticipants:
    """Who is left out because of bad files, by side, and what is wrong.

    Parameters
    ----------
    stop : bool
        Refuse the first one instead.
    """

    def __init__(self, stop: bool) -> None:
        self._stop = stop
        self._found: dict[tuple[str, str], tuple[Problem, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, side: str, who: str, problems: tuple[Problem, ...]) -> None:
        """Note somebody.

        Raises
        ------
        InputError
            With what is wrong, where the run is to stop at the first.
        """
        if self._stop:
            raise InputError(problems)
        self._found[side, who] = problems

    def problems(self) -> list[Problem]:
        """Return all that is wrong; at least that there is nobody."""
        found = [problem for problems in self._found.values() for problem in problems]
        return found or [Problem("nobody", "cohort", "nobody to embed", "a genome or a scan")]

    def write(self, path: Path) -> None:
        """Write a table of them, or take away the one of an earlier run."""
        if not self._found:
            path.unlink(missing_ok=True)
            return
        rows = [("participant_id", "modality", "code", "where", "found", "wanted", "fix")]
        for (side, who), problems in self._found.items():
            rows += [(who, side, p.code, p.where, p.found, p.wanted, p.fix) for p in problems]
        lines = ["\t".join(" ".join(cell.split()) for cell in row) for row in rows]
        self._table = path
        write_text(path, "\n".join(lines) + "\n")

    def say(self) -> None:
        """Summarise them on the error stream."""
        if not self._found:
            return
        people = len({who for _, who in self._found})
        warn(f"{people} left out because of bad files; the others are done")
        for problem in self.problems()[:_SHOWN]:
            warn(f"  {problem}")
        warn(f"all of them in {self._table}; mended, the same command goes on from here")


def _sides(config: DictConfig) -> list[str]:
    """Return the sides asked for; what is wrong with any setting of the verb is refused."""
    problems = []
    sides = list(config.sides)
    if not sides or set(sides) - set(SIDES):
        problems.append(Problem("bad-sides", "sides", str(sides), f"some of {list(SIDES)}"))
    if config.on_error not in ON_ERROR:
        wanted = f"one of {', '.join(ON_ERROR)}"
        problems.append(Problem("bad-value", "on_error", repr(config.on_error), wanted))
    for name in ("block_subjects", "workers", "processes", "dna_batch_size", "brain_batch_size"):
        least = 0 if name == "workers" else 1
        value = config[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            problems.append(Problem("bad-value", name, repr(value), f"{least} or more"))
    if problems:
        raise InputError(problems)
    return sides


@dataclass(frozen=True)
class _Job:
    """What both sides are embedded by."""

    bundle: Bundle
    cohort: Cohort
    config: DictConfig
    bad: BadParticipants
    crew: Crew


def _embed_side(side: str, job: _Job, shards: LatentShards) -> set[str]:
    """Embed one side block by block, and return who is done."""
    with Stages().stage(f"embed {side}", f"{_WHAT[side]} through the bundle's encoder and tower"):
        blocks = _blocks(side, job)

        def work(takes: Takes, shown: bool) -> None:
            _write_latents(side, blocks, shards, takes, shown)

        job.crew.share_out(f"{side} latents", work)
    return {who for block in blocks for who in block.participant_ids}


_WHAT = {"gene": "genomes", "brain": "scans"}


def _write_latents(
    side: str, blocks: Sequence[Block], shards: LatentShards, takes: Takes, shown: bool
) -> None:
    total = sum(len(block.participant_ids) for block in blocks)
    with progress_bar(f"{side} latents", total, "subject", shown) as bar:
        for number, block in enumerate(blocks):
            if not shards.has(side, number, block.inputs) and takes(str(number)):
                values = block.latents()
                shards.write(side, number, block.participant_ids, values, block.inputs)
            bar.update(len(block.participant_ids))


def _blocks(side: str, job: _Job) -> Sequence[Block]:
    def on_bad(who: str, problems: tuple[Problem, ...]) -> None:
        job.bad.add(side, who, problems)

    bundle, cohort, config, crew = job.bundle, job.cohort, job.config, job.crew
    device, features_dir = device_of(crew, str(config.device)), Path(config.features.dir)
    subjects = int(config.block_subjects)
    if side == "gene":
        dna: Any = load_bundle_encoder(bundle, "dna", config.dna_weights, device)
        return genome_blocks(
            bundle, cohort, dna, features_dir,
            batch_size=int(config.dna_batch_size), subjects=subjects, on_bad=on_bad, crew=crew,
        )  # fmt: skip
    brain: Any = load_bundle_encoder(bundle, "brain", config.brain_weights, device)
    return brain_blocks(
        bundle, cohort, brain, features_dir, batch_size=int(config.brain_batch_size),
        workers=int(config.workers), subjects=subjects, on_bad=on_bad, crew=crew,
    )  # fmt: skip


def _say_done(done: Mapping[str, set[str]], prints: Mapping[str, str], latents: Path) -> None:
    for side, who in done.items():
        fingerprint = f", fingerprint {prints[side][:16]}" if side in prints else ""
        say(f"{side:<10} {len(who)} subjects{fingerprint}")
    if len(done) == len(SIDES):
        gene, brain = done["gene"], done["brain"]
        alone = f"{len(gene - brain)} a genome only, {len(brain - gene)} a scan only"
        say(f"{'together':<10} {len(gene & brain)} have both, {alone}")
    say(f"latents in {latents}; treat them as the genotypes they come from")


def embed(
    bundle: Bundle,
    cohort: Cohort,
    sides: list[str],
    features_dir: Path,
    weights: dict[str, Any] | None = None,
    device: str = "cpu",
) -> list[Latents]:
    """Return the latents of a cohort's subjects at once, one part a side."""
    stages = Stages()
    given = weights or {}
    parts = []
    if "gene" in sides:
        dna: Any = load_bundle_encoder(bundle, "dna", given.get("dna"), device)
        with stages.stage("embed gene", "genomes through the bundle's encoder and tower"):
            parts.append(embed_genomes(bundle, cohort, dna, features_dir))
    if "brain" in sides:
        brain: Any = load_bundle_encoder(bundle, "brain", given.get("brain"), device)
        with stages.stage("embed brain", "scans through the bundle's encoder and tower"):
            parts.append(embed_brains(bundle, cohort, brain, features_dir))
    return parts


def _chosen(cohort: Cohort, ids: list[str]) -> Cohort:
    unknown = [who for who in ids if who not in cohort.participants.index]
    if unknown:
        raise InputError(
            Problem(
                "unknown-participant",
                "participants",
                f"{len(unknown)} unknown, the first {unknown[0]}",
                "ids of the cohort",
            )
        )
    return cohort.take(ids)
