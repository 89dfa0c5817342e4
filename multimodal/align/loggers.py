"""The loggers that a run writes to, by name."""

import os
from pathlib import Path
from typing import Any


def make_loggers(names: tuple[str, ...], folder: Path) -> list[Any]:
    """Return Lightning loggers that write into a folder.

    MLflow and W&B heed their own environment variables (``MLFLOW_TRACKING_URI``,
    ``MLFLOW_EXPERIMENT_NAME``, ``WANDB_PROJECT``, ``WANDB_MODE``) before ours.

    Parameters
    ----------
    names : tuple of str
        Some of `multimodal.align.running.LOGGERS`.
    folder : Path
        The run's ``logs``.
    """
    makers = {"csv": _csv, "tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    return [makers[name](folder) for name in names]


def _csv(folder: Path) -> Any:
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(folder, name="csv")


def _tensorboard(folder: Path) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="tensorboard")


def _mlflow(folder: Path) -> Any:
    from lightning.pytorch.loggers import MLFlowLogger

    local = (folder / "mlflow").absolute().as_uri()
    return MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "genebold"),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local),
    )


def _wandb(folder: Path) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        project=os.environ.get("WANDB_PROJECT", "genebold"), save_dir=folder / "wandb"
    )
