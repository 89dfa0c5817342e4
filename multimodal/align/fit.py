"""Fitting the towers: from two feature tables and a split to a trained `Aligner`."""

import hashlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from multimodal.align.aligner import Aligner, covariate_tensor, pool_brains, pool_genes
from multimodal.align.checks import SPLITS, check_inputs
from multimodal.align.data import AlignData, AlignDataset, SegmentSubsets
from multimodal.align.finetune.module import FineTuneModule
from multimodal.align.finetune.tuned import TunedEncoder
from multimodal.align.interruption import StopRequest
from multimodal.align.keeping import EpochBar, HistoryRow, Keeper, prepare_folder
from multimodal.align.loggers import make_loggers
from multimodal.align.losses import Kinship
from multimodal.align.module import AlignModule
from multimodal.align.options import AlignOptions, SideOptions
from multimodal.align.processes import Processes, joined
from multimodal.align.running import TrainerOptions
from multimodal.align.strategy import ShardedStrategy
from multimodal.align.warmstart import start_from_cca
from multimodal.features.tables import BrainFeatures, GeneFeatures
from projectors.standardise import StandardiserOptions
from projectors.tower import Tower, TowerOptions


@dataclass(frozen=True)
class FitResult:
    """What `fit` gives back.

    Parameters
    ----------
    aligner : Aligner
        In eval mode, with the weights of the best epoch (of the last, without validation).
    history : DataFrame
        One row an epoch: epoch (0 is before training), train_loss, val_loss, val_percentile,
        logit_scale.
    best_epoch : int
    checkpoint : Path or None
        The best epoch's checkpoint (the last one's where there is no better); None in memory.
    """

    aligner: Aligner
    history: pd.DataFrame
    best_epoch: int
    checkpoint: Path | None


def fit(
    gene: GeneFeatures,
    brain: BrainFeatures,
    split: np.ndarray,
    relatives: np.ndarray,
    covariates: np.ndarray | None,
    options: AlignOptions,
    *,
    out_dir: Path | None = None,
    resume: bool = True,
    progress: bool = True,
    kinship: tuple[np.ndarray, np.ndarray] | None = None,
    strata: np.ndarray | None = None,
    confounds: np.ndarray | None = None,
    encoders: Mapping[str, TunedEncoder] | None = None,
    running: TrainerOptions | None = None,
    stop: StopRequest | None = None,
) -> FitResult:
    """Fit standardisers and train both towers.

    Nothing is learned from test subjects, and validation subjects only choose the epoch. The
    same inputs, options and number of threads give the same weights, bit for bit, on a CPU, also
    where a fit with an `out_dir` was killed, or asked to stop, and started again. Several
    processes (torchrun, srun) call it with the same arguments and get the same result.

    Parameters
    ----------
    gene, brain : GeneFeatures, BrainFeatures
        Of the same n subjects in the same order.
    split : ndarray [n] of str
        ``train``, ``validation`` (may be absent) or ``test``.
    relatives : ndarray [n] of int
        Kinship component of each subject; relatives are never negatives of each other.
    covariates : ndarray [n, c] or None
        Regressed out where ``options.residualise``, else not looked at.
    options : AlignOptions
    out_dir : Path, optional
        Receives ``checkpoints/`` and ``logs/``. None fits in memory.
    resume : bool
        Go on from ``checkpoints/last.ckpt`` where there is one; False sets it aside.
    progress : bool
        Show a progress bar.
    kinship : pair of ndarray [p, 2] int and [p] float, optional
        Pairs of subjects (rows) and their kinship coefficients, as
        `multimodal.cohort.kinship.kinship_table` gives them; for ``options.loss="soft_target"``.
    strata : ndarray [n], optional
        Label of each subject, where ``options.batch_strata``: batches are of one stratum each.
    confounds : ndarray [n, c] of int, optional
        Codes from 0, -1 where unknown, of each of ``options.adversary``.
    encoders : mapping of str to TunedEncoder, optional
        By side, where ``options.fine_tune`` names sides; their inputs are of the same n subjects
        in the same order. They end with the weights of the best epoch.
    running : TrainerOptions, optional
        Processes and loggers; one process by default.
    stop : StopRequest, optional
        Where signals are noted that ask training to save and stop.

    Raises
    ------
    Interrupted
        A signal asked for it, and `stop` was given.
    InputError
        Tables that do not belong together, too few unrelated subjects to contrast, missing
        covariates, features that are not finite, or checkpoints of another fit.
    """
    check_inputs(gene, brain, split, relatives, covariates, options, strata, confounds)
    if set(options.fine_tune.sides) != set(encoders or ()):
        raise ValueError("fit wants an encoder for each of options.fine_tune.sides")
    with torch.random.fork_rng(devices=[]), _quiet_lightning():
        torch.manual_seed(options.seed)
        strata = strata if options.batch_strata else None
        read = confounds if options.adversary and options.adversary_weight else None
        groups = _groups(strata, read)
        setting = _prepare(gene, brain, split, relatives, covariates, options, groups)
        setting.data.strata = strata
        if read is not None:
            setting.data.dataset.confounds = torch.from_numpy(read.astype(np.int64))
        if kinship is not None and options.loss == "soft_target":
            pairs, coefficient = (torch.from_numpy(np.asarray(part)) for part in kinship)
            setting = replace(setting, kinship=Kinship(pairs, coefficient))
        running = running or TrainerOptions()
        return _train(setting, options, encoders, out_dir, resume, progress, running, stop)


@dataclass(frozen=True)
class _Setting:
    aligner: Aligner
    data: AlignData
    covariates: Tensor | None = None
    kinship: Kinship | None = None


def _groups(strata: np.ndarray | None, confounds: np.ndarray | None) -> np.ndarray | None:
    """Codes of all that training is to be blind to, a column each."""
    columns: list[np.ndarray] = [] if confounds is None else list(confounds.T)
    if strata is not None:
        columns.append(np.unique(strata, return_inverse=True)[1].reshape(-1))
    return np.stack(columns, axis=1).astype(np.int64) if columns else None


def _prepare(
    gene: GeneFeatures,
    brain: BrainFeatures,
    split: np.ndarray,
    relatives: np.ndarray,
    covariates: np.ndarray | None,
    options: AlignOptions,
    groups: np.ndarray | None = None,
) -> _Setting:
    """Pool, fit the standardisers on training subjects, start the heads, and make the batches."""
    extra = covariate_tensor(covariates, len(split)) if options.residualise else None
    pooled_gene = pool_genes(gene, options.strand_merge)
    pooled_brain = pool_brains(brain, options.segment_weighting)
    train, validation = (np.flatnonzero(split == name) for name in SPLITS[:2])
    rows = torch.from_numpy(train)
    train_extra = None if extra is None else extra[rows]
    aligner = Aligner(
        Tower.fit(pooled_gene[rows], tower_options(options, "gene"), train_extra),
        Tower.fit(pooled_brain[rows], tower_options(options, "brain"), train_extra),
        gene.windows,
        options.strand_merge,
        options.segment_weighting,
        options.temperature,
    )
    gene_matrix = aligner.gene.standardise(pooled_gene, extra)
    brain_matrix = aligner.brain.standardise(pooled_brain, extra)
    if options.start == "cca":
        start_from_cca(
            aligner,
            gene_matrix[rows],
            brain_matrix[rows],
            ridge=options.cca_ridge,
            seed=options.seed,
            groups=None if groups is None else groups[train],
        )
    subsets = None
    if options.augment_segments:
        subsets = SegmentSubsets(
            brain, aligner.brain, options.segment_weighting, extra, options.seed
        )
    component = torch.from_numpy(np.asarray(relatives, dtype=np.int64))
    dataset = AlignDataset(gene_matrix.float(), brain_matrix.float(), component, subsets)
    data = AlignData(dataset, train, validation, options.batch_size, options.seed)
    return _Setting(aligner, data, extra)


def _train(
    setting: _Setting,
    options: AlignOptions,
    encoders: Mapping[str, TunedEncoder] | None,
    out_dir: Path | None,
    resume: bool,
    progress: bool,
    running: TrainerOptions,
    stop: StopRequest | None,
) -> FitResult:
    """Run the trainer and put the best weights where they belong."""
    aligner, data = setting.aligner, setting.data
    folder = None if out_dir is None else Path(out_dir) / "checkpoints"
    module = _module(setting, options, encoders)
    with joined(running, options.accelerator) as processes:
        checkpoint = None
        if folder is not None:
            digests = {
                "options": options.fingerprint(),
                "data": _data_fingerprint(data, setting.kinship),
            }
            prepare = partial(prepare_folder, folder, digests, resume)
            checkpoint = processes.from_first(prepare)
        # A checkpoint has these figures; to find them, everybody would be encoded again.
        keeper = Keeper(
            {} if checkpoint else _untrained_figures(module, data),
            module.kept_state(),
            options.patience,
            folder,
            options.checkpoint_every,
            stop,
            first_epoch=options.fine_tune.last_start(),
        )
        shown: list[Callback] = [EpochBar()] if progress and processes.is_first else []
        if options.epochs:
            trainer = Trainer(
                max_epochs=options.epochs,
                accelerator=options.accelerator,
                devices=running.devices,
                num_nodes=running.num_nodes,
                strategy=_strategy(running),
                # Units put together in inference mode could not be used with gradients later.
                inference_mode=not running.sharded,
                plugins=[_Settled()],
                use_distributed_sampler=False,
                logger=make_loggers(running.logger, Path(out_dir) / "logs") if out_dir else False,
                callbacks=[keeper, *shown],
                gradient_clip_val=options.gradient_clip,
                limit_val_batches=None if len(data.validation_rows) else 0,
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            with nullcontext() if stop is None else stop.noting():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        best_weights = keeper.best_weights
        if module.sharded:
            module.join()
            best_weights = _from_first(processes, module.kept_state(), best_weights)
    module.cpu().load_kept(best_weights)
    best = None
    if folder is not None and options.epochs:
        best = folder / ("best.ckpt" if (folder / "best.ckpt").exists() else "last.ckpt")
    return FitResult(aligner.eval(), pd.DataFrame(keeper.history), keeper.best_epoch, best)


def _strategy(running: TrainerOptions) -> str | Strategy:
    if running.sharded:
        return ShardedStrategy()
    return "auto" if running.strategy == "fsdp" else running.strategy


def _from_first(
    processes: Processes, names: Iterable[str], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Give all processes what only the first has, tensor by tensor."""
    return {name: processes.from_first(partial(values.__getitem__, name)) for name in names}


def _module(
    setting: _Setting, options: AlignOptions, encoders: Mapping[str, TunedEncoder] | None
) -> AlignModule:
    read = setting.data.dataset.confounds
    classes = None if read is None else [max(int(top) + 1, 1) for top in read.max(dim=0).values]
    if not encoders:
        return AlignModule(setting.aligner, options, setting.kinship, classes)
    subsets = setting.data.dataset.subsets
    return FineTuneModule(
        setting.aligner, options, encoders, setting.kinship, classes, setting.covariates, subsets
    )


class _Settled(LightningEnvironment):
    """Who is which process is settled before the fit, and stays so after it.

    torchrun, srun or `companions` said it in the environment; Lightning would take the number of
    processes out of it at the end, after which each would hold itself for the only one.
    """

    def teardown(self) -> None:
        """Leave the environment alone."""


def tower_options(options: AlignOptions, side: str) -> TowerOptions:
    """Return what the tower of `side` ("gene" or "brain") is built with."""
    own: SideOptions = getattr(options, side)
    return TowerOptions(
        pooling=options.region_pooling if side == "gene" else "concat",
        head=own.head,
        hidden_dim=options.hidden_dim,
        latent_dim=options.latent_dim,
        dropout=own.dropout,
        attention_heads=options.attention_heads,
        standardiser=StandardiserOptions(
            own.scale, own.components, own.explained_variance, own.whitening_shrinkage
        ),
    )


@torch.no_grad()
def _untrained_figures(module: AlignModule, data: AlignData) -> HistoryRow:
    """Validation loss and percentile before the first step: the start may be the best there is."""
    if not len(data.validation_rows):
        return {}
    module.eval()
    losses, sizes, percentiles = [], [], []
    for wanted in data.galleries():
        batch = data.dataset[wanted]
        loss, percentile = module.gallery_figures(batch)
        losses.append(float(loss))
        sizes.append(len(batch.relatives))
        percentiles.append(percentile)
    module.train()
    return {
        "val_loss": float(np.average(losses, weights=sizes)),
        "val_percentile": float(torch.cat(percentiles).mean()),
    }


def _data_fingerprint(data: AlignData, kinship: Kinship | None) -> str:
    """Digest of what is trained on: standardised features, split, relatives, and known kinship."""
    digest = hashlib.sha256()
    dataset = data.dataset
    seen = np.concatenate([data.train_rows, data.validation_rows])
    for part in (data.train_rows, data.validation_rows):
        digest.update(np.int64(len(part)).tobytes() + part.tobytes())
    for tensor in (dataset.gene, dataset.brain, dataset.relatives):
        values: Tensor = tensor[torch.from_numpy(seen)].contiguous()
        digest.update(str(tuple(values.shape)).encode() + values.numpy().tobytes())
    if data.strata is not None:
        digest.update(repr(data.strata[seen].tolist()).encode())
    if dataset.confounds is not None:
        digest.update(dataset.confounds[torch.from_numpy(seen)].numpy().tobytes())
    if kinship is not None:
        digest.update(kinship.pairs.numpy().tobytes() + kinship.coefficient.numpy().tobytes())
    return digest.hexdigest()[:32]


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep notices about devices, workers and loaders, which say nothing here, off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
