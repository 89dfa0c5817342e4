"""``genebold push``: a bundle to the Hugging Face hub."""

from omegaconf import DictConfig

from encoders.errors import InputError, Problem
from multimodal.align.processes import refuse_several
from multimodal.latent.push import push_bundle
from multimodal.verbs.console import say
from multimodal.verbs.settings import flag


def run(config: DictConfig) -> int:
    """Upload a bundle, and say how it is embedded with."""
    refuse_several("push")
    if config.repo is None:
        usage = "genebold push BUNDLE_DIR OWNER/NAME"
        raise InputError(Problem("missing-repo", "repo", "none", "a hub id OWNER/NAME", usage))
    done = push_bundle(
        str(config.bundle),
        str(config.repo),
        private=flag(config.private, "private"),
        revision=config.revision,
        message=str(config.message),
    )
    repo, _, commit = done.partition("@")
    say(f"{config.bundle} -> {done}")
    say(f"genebold embed bundle={repo} revision={commit} cohort.dir=NEW")
    return 0
