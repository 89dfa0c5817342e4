"""Standardised features of the training and validation subjects, in batches that a seed decides."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from multimodal.features.tables import BrainFeatures
from projectors.pooling import MotionWeighting, motion_weights, pool_segments
from projectors.tower import Tower

# A validation gallery larger than this is cut into several, to bound memory.
_MAX_GALLERY = 4096


class Batch(NamedTuple):
    """Paired rows: standardised gene [b, ...] and brain [b, k] features, kinship component [b].

    `subject` [b] is each row's place among all subjects, for what is known of pairs of them;
    `confounds` [b, c] are codes of what an adversary reads.
    """

    gene: Float[Tensor, "row *gene"]  # noqa: F821  # a shape
    brain: Float[Tensor, "row brain"]
    relatives: Int[Tensor, " row"]
    subject: Int[Tensor, " row"] | None = None
    confounds: Int[Tensor, "row confound"] | None = None


class EpochRows(NamedTuple):
    """Rows of one batch, and the epoch they are for (None outside training)."""

    epoch: int | None
    rows: np.ndarray


class SegmentSubsets:
    """A random subset of each subject's segments, another one each epoch.

    Each segment stays with probability one half, and at least one of a subject's stays. What
    trains the brain tower so is the subject, not the moments that happened to be recorded.

    Parameters
    ----------
    brain : BrainFeatures
        Of all subjects.
    tower : Tower
        Brain tower with a fitted standardiser.
    weighting : {"motion", "mean"}
    covariates : Tensor [n, c], optional
        Where the tower residualises.
    seed : int
    """

    def __init__(
        self,
        brain: BrainFeatures,
        tower: Tower,
        weighting: MotionWeighting,
        covariates: Float[Tensor, "subject covariate"] | None,
        seed: int,
    ) -> None:
        self.brain, self.tower, self.covariates, self.seed = brain, tower, covariates, seed
        fd_mm = torch.from_numpy(np.asarray(brain.mean_fd_mm, dtype=np.float64))
        self.weights = motion_weights(fd_mm, weighting)
        self._drawn: tuple[int, Tensor] | None = None

    def draw(self, epoch: int) -> Float[Tensor, "subject brain"]:
        """Standardised brain features of all subjects, pooled over this epoch's subsets."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, self._pool(self.kept_segments(epoch)))
        return self._drawn[1]

    def kept_segments(self, epoch: int) -> np.ndarray:
        """Rows of the segments that stay this epoch, ascending."""
        random = np.random.default_rng([self.seed, epoch, 1]).random(len(self.brain.subject))
        keep = random < 0.5
        # The segment with a subject's smallest number always stays.
        order = np.lexsort((random, self.brain.subject))
        first = np.unique(self.brain.subject[order], return_index=True)[1]
        keep[order[first]] = True
        return np.flatnonzero(keep)

    def _pool(self, keep: np.ndarray) -> Tensor:
        rows = torch.from_numpy(keep)
        pooled = pool_segments(
            torch.from_numpy(self.brain.values[keep].astype(np.float64)),
            torch.from_numpy(self.brain.subject)[rows],
            torch.from_numpy(self.brain.run)[rows],
            self.weights[rows],
            len(self.brain.participant_ids),
        )
        return self.tower.standardise(pooled[:, None, :], self.covariates).float()


class AlignDataset(Dataset[Batch]):
    """Rows of the feature matrices, looked up a whole batch at a time."""

    def __init__(
        self,
        gene: Float[Tensor, "subject *gene"],  # noqa: F821  # a shape
        brain: Float[Tensor, "subject brain"],
        relatives: Int[Tensor, " subject"],
        subsets: SegmentSubsets | None = None,
        confounds: Int[Tensor, "subject confound"] | None = None,
    ) -> None:
        self.gene, self.brain, self.relatives, self.subsets = gene, brain, relatives, subsets
        self.confounds = confounds

    def __getitem__(self, wanted: EpochRows) -> Batch:
        rows = torch.from_numpy(wanted.rows)
        brain = self.brain
        if wanted.epoch is not None and self.subsets is not None:
            brain = self.subsets.draw(wanted.epoch)
        confounds = None if self.confounds is None else self.confounds[rows]
        return Batch(self.gene[rows], brain[rows], self.relatives[rows], rows, confounds)


class EpochSampler(Sampler[EpochRows]):
    """Shuffled batches of training rows; the order follows from the seed and the epoch alone.

    The last batch is not dropped: batches differ in size by one row at most, and none is larger
    than `batch_size`. Several processes share each batch, which is the same whatever their number;
    their shares differ by one row at most, and may be empty.

    Parameters
    ----------
    rows : ndarray [m] int
    batch_size : int or None
        Of all processes together. None for all rows in one batch, in their order.
    seed : int
    rank, processes : int
        Which of how many processes this one is.
    strata : ndarray [m], optional
        A label of each row: batches then hold rows of one stratum, and come in random order. A
        stratum of a single row, who has nobody to be told from, is left out.
    begun : tuple of int
        An epoch, and how many of its batches are trained already and so not drawn again.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int | None,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        strata: np.ndarray | None = None,
        begun: tuple[int, int] = (0, 0),
    ) -> None:
        self.rows, self.seed, self.epoch, self.begun = rows, seed, 0, begun
        self.rank, self.processes = rank, processes
        self.groups = [rows]
        if strata is not None:
            found = [rows[strata == label] for label in np.unique(strata)]
            self.groups = [group for group in found if len(group) > 1]
        self.cuts = [
            1 if batch_size is None else max(1, -(-len(group) // batch_size))
            for group in self.groups
        ]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.cuts)

    def __iter__(self) -> Iterator[EpochRows]:
        random = np.random.default_rng([self.seed, self.epoch, 0])
        batches: list[np.ndarray] = []
        for group, cuts in zip(self.groups, self.cuts, strict=True):
            order = random.permutation(group) if cuts > 1 else group
            batches += np.array_split(order, cuts)
        if len(self.groups) > 1:
            batches = [batches[place] for place in random.permutation(len(batches))]
        epoch, trained = self.begun
        for rows in batches[trained if self.epoch == epoch else 0 :]:
            yield EpochRows(self.epoch, np.array_split(rows, self.processes)[self.rank])


class GallerySampler(Sampler[EpochRows]):
    """Validation rows in one gallery, or in several equal ones where there are very many.

    Parameters
    ----------
    rows : ndarray [m] int
    strata : ndarray [m], optional
        A label of each row: galleries then hold rows of one stratum, unless none has two.
    """

    def __init__(self, rows: np.ndarray, strata: np.ndarray | None = None) -> None:
        groups = [] if strata is None else [rows[strata == label] for label in np.unique(strata)]
        groups = [group for group in groups if len(group) > 1] or [rows]
        self.galleries = [
            part
            for group in groups
            for part in np.array_split(group, max(1, -(-len(group) // _MAX_GALLERY)))
        ]

    def __len__(self) -> int:
        return len(self.galleries)

    def __iter__(self) -> Iterator[EpochRows]:
        for rows in self.galleries:
            yield EpochRows(None, rows)


class AlignData(LightningDataModule):
    """In-memory features for the trainer.

    Attributes
    ----------
    begun : tuple of int
        Where training was interrupted: an epoch, and how many of its batches were trained. It
        travels in the checkpoint.

    Parameters
    ----------
    dataset : AlignDataset
        Of all subjects.
    train_rows, validation_rows : ndarray of int
        Their split; validation may be empty.
    batch_size : int or None
        Training rows a step, of all processes together; None for all.
    seed : int
    strata : ndarray [n], optional
        A label of each subject, where batches are to be of one stratum each.
    """

    def __init__(
        self,
        dataset: AlignDataset,
        train_rows: np.ndarray,
        validation_rows: np.ndarray,
        batch_size: int | None,
        seed: int,
        strata: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.batch_size, self.seed, self.strata = batch_size, seed, strata
        self.begun = (0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return where an epoch was interrupted."""
        return {"begun": list(self.begun)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        epoch, batches = state_dict["begun"]
        self.begun = (int(epoch), int(batches))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training batches, shuffled anew each epoch."""
        rank, processes = 0, 1
        if self.trainer is not None:
            rank, processes = self.trainer.global_rank, self.trainer.world_size
        strata = None if self.strata is None else self.strata[self.train_rows]
        sampler = EpochSampler(
            self.train_rows, self.batch_size, self.seed, rank, processes, strata, self.begun
        )
        return DataLoader(self.dataset, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Validation galleries; no loader where no subject is set aside."""
        if not len(self.validation_rows):
            return []
        return DataLoader(self.dataset, sampler=self.galleries(), batch_size=None)

    def galleries(self) -> GallerySampler:
        """Validation galleries: what training is to be blind to is not to choose the epoch."""
        rows, strata, confounds = self.validation_rows, self.strata, self.dataset.confounds
        if strata is None and confounds is not None:
            strata = np.unique(confounds.numpy(), axis=0, return_inverse=True)[1].reshape(-1)
        return GallerySampler(rows, None if strata is None else strata[rows])
