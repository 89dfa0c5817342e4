"""Handing a bundle on through the Hugging Face hub: its own files, its card, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encoders.errors import InputError, Problem
from encoders.licences import forbids_derivatives, is_non_commercial
from encoders.torch_files import first_line
from multimodal.latent.bundle import CARD, FILES, Bundle, read_bundle
from multimodal.latent.delta import DELTA, changed_sides

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push_bundle(
    path: Path | str,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "A genebold bundle",
) -> str:
    """Upload a bundle to the hub, in one commit.

    Parameters
    ----------
    path : path
        The bundle's folder.
    repo_id : str
        ``owner/name``; made where it does not exist.
    private : bool
        Whether a repository that is made is private; one that exists stays as it is.
    revision : str, optional
        Branch to commit to, made where it does not exist; the main branch by default.
    message : str
        Of the commit.

    Returns
    -------
    str
        ``owner/name@commit``: name that commit as revision to have the same bundle again.

    Raises
    ------
    InputError
        A bundle that is damaged, fine-tuned weights whose licence forbids passing them on, a bad
        id, offline mode, or what the hub refuses.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise InputError(Problem("push-id", repo_id, "not a hub id", "an id OWNER/NAME"))
    if not (Path(path).expanduser() / "bundle.json").is_file():
        raise InputError(
            Problem("bundle-missing", str(path), "no bundle.json in it", "a bundle's own folder")
        )
    bundle = read_bundle(path, installed=False)
    problems = find_forbidden(bundle)
    if problems:
        raise InputError(problems)
    return f"{repo_id}@{_commit(bundle, repo_id, private, revision, message)}"


def find_forbidden(bundle: Bundle) -> list[Problem]:
    """Find fine-tuned weights whose licence forbids passing on what was made from them.

    Those are the Creative Commons licences without derivatives: CC-BY-ND, and the CC-BY-NC-ND-4.0
    of BrainLM's published weights. Adapting them at home is allowed, sharing the result is not (CC
    BY-NC-ND 4.0, section 2a1), and a difference, or LoRA's factors, is made from them as much as
    the whole is. Terms without commercial use alone (CC-BY-NC) allow it, under the same terms.
    """
    licences = {side: _licence(bundle.manifest[side]) for side in changed_sides(bundle.manifest)}
    return [
        Problem(
            "push-licence", str(bundle.path / DELTA),
            f"changes to {side} weights under {licence}, which forbids derivatives",
            "a bundle trained on frozen features of these weights", "align with frozen encoders",
        )
        for side, licence in licences.items()
        if forbids_derivatives(licence)
    ]  # fmt: skip


def hub_card(bundle: Bundle) -> str:
    """Return the repository's ``README.md``: the model card under what the hub reads first."""
    licences = [_licence(bundle.manifest[side]) for side in ("dna", "brain")]
    named = sorted({licence for licence in licences if licence != "none"})
    fields = {
        "library_name": "genebold",
        "license": "other",
        "license_name": "terms-of-the-cohort-and-weights",
        "tags": ["genomics", "fmri", "imaging-genetics", "multimodal"],
    }
    if any(is_non_commercial(licence) for licence in named):
        fields["license_name"] = "non-commercial-" + "-and-".join(named).lower()
    # JSON is YAML, so names need no quoting of our own.
    head = "\n".join(f"{name}: {json.dumps(value)}" for name, value in fields.items())
    return f"---\n{head}\n---\n\n{(bundle.path / CARD).read_text(encoding='utf-8')}"


def _licence(section: Mapping[str, Any]) -> str:
    return str((section.get("spec") or {}).get("weight_license", "none"))


def _commit(bundle: Bundle, repo_id: str, private: bool, revision: str | None, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise InputError(
            Problem("push-hub", repo_id, "HF_HUB_OFFLINE is set", "a network", "unset it to push")
        )
    names = [name for name in FILES if (bundle.path / name).is_file()]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, str(bundle.path / name)) for name in names),
        CommitOperationAdd("README.md", hub_card(bundle).encode()),
    ]
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # What an earlier bundle had and this one has not would be taken for a part of it.
        left = [name for name in FILES if name not in names]
        operations += [
            CommitOperationDelete(name)
            for name in left
            if api.file_exists(repo_id, name, revision=revision)
        ]
        done = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    # huggingface_hub's own errors derive from these; a bad id or a missing token is a ValueError.
    except (OSError, ValueError) as error:
        raise InputError(
            Problem(
                "push-hub", repo_id, first_line(error), "a repository of the hub you may write to",
                "sign in with `hf auth login`, or set HF_TOKEN",
            )
        ) from error  # fmt: skip
    return str(done.oid)
