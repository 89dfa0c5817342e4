"""Which BOLD runs go into which shard, and how a run is known again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multimodal.bold.bids import BoldRun
from multimodal.features.fingerprint import file_identity, text_digest


@dataclass(frozen=True)
class BrainShard:
    """The runs of a few subjects, in order.

    Parameters
    ----------
    name : str
        File name within the store.
    runs : tuple of BoldRun
    inputs : str
        Digest over the runs' names and the sizes of their files, so that a scan that was replaced
        is encoded again.
    """

    name: str
    runs: tuple[BoldRun, ...]
    inputs: str


def plan_shards(runs: Sequence[BoldRun], subjects_per_shard: int) -> list[BrainShard]:
    """Divide runs, ordered by subject, into shards of a fixed number of subjects."""
    by_subject: dict[str, list[BoldRun]] = {}
    for run in runs:
        by_subject.setdefault(run.participant_id, []).append(run)
    subjects = list(by_subject.values())
    shards = []
    for number, start in enumerate(range(0, len(subjects), subjects_per_shard)):
        inside = [run for group in subjects[start : start + subjects_per_shard] for run in group]
        name = f"segments/{number:06d}.parquet"
        shards.append(BrainShard(name, tuple(inside), runs_digest(inside)))
    return shards


def runs_digest(runs: Sequence[BoldRun]) -> str:
    """Return a digest over runs' names and what tells their files from other versions of them."""
    return text_digest(part for run in runs for part in _identity(run))


def _identity(run: BoldRun) -> list[str]:
    return [*run_name(run), *(_content(path) for path in (run.bold, run.mask, run.confounds))]


def run_name(run: BoldRun) -> tuple[str, str, str, str]:
    """Return what a run is known by: participant, session, run, file name."""
    return run.participant_id, run.session, run.run, run.bold.name


def _content(path: Path | None) -> str:
    """Return what tells a file from another version of it, without reading a whole scan."""
    if path is None or not path.exists():
        return "none"
    if path.suffix == ".gz":
        with path.open("rb") as file:  # ends with a checksum of what it holds, and its length
            file.seek(max(0, path.stat().st_size - 8))
            return f"{path.stat().st_size}:{file.read().hex()}"
    return json.dumps(file_identity(path), sort_keys=True)
