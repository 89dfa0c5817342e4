"""The heads of upstream's checkpoints: from a feature map to logits, a value or an embedding.

All take the plain mean over space and time first. Parameters carry upstream's names
(Transconnectome/SwiFT, clf_mlp.py, clf_mlp_v2.py, emb_mlp.py).
"""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoders.swift.model import pool

HeadName = Literal["clf_mlp_v1", "clf_mlp_v2", "reg_mlp", "emb_mlp"]
EMBEDDING_SIZE = 128
HEAD_TENSORS = frozenset(
    (
        *("head.weight", "head.bias", "hidden.weight", "hidden.bias", "fc1.weight"),
        *("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"),
        "bn1.num_batches_tracked",
    )
)


class LinearHead(nn.Module):
    """One linear layer: upstream's ``clf_mlp`` (version 1) and ``reg_mlp``.

    Parameters
    ----------
    dim : int
        Channels of the feature map.
    outputs : int
        Numbers a segment; two classes need one logit (class 1 where it is at least 0).
    """

    def __init__(self, dim: int, outputs: int = 1) -> None:
        super().__init__()
        self.head = nn.Linear(dim, outputs)

    def forward(
        self, features: Float[Tensor, "batch dim h w d frame"]
    ) -> Float[Tensor, "batch output"]:
        """Return logits, or the predicted value in the units of the scaled target."""
        return self.head(pool(features))


class HiddenHead(nn.Module):
    """Two linear layers without anything between them: upstream's ``clf_mlp`` (version 2).

    Parameters
    ----------
    dim, outputs : int
        As `LinearHead`.
    """

    def __init__(self, dim: int, outputs: int = 1) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, 4 * dim)
        self.head = nn.Linear(4 * dim, outputs)

    def forward(
        self, features: Float[Tensor, "batch dim h w d frame"]
    ) -> Float[Tensor, "batch output"]:
        """Return logits."""
        return self.head(self.hidden(pool(features)))


class EmbeddingHead(nn.Module):
    """A unit vector a segment, for contrastive training: upstream's ``emb_mlp``.

    Upstream names two kinds of embedding, "g" and "l", which are the same numbers.

    Parameters
    ----------
    dim : int
        Channels of the feature map.
    size : int
        Length of the vector.
    """

    def __init__(self, dim: int, size: int = EMBEDDING_SIZE) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, size, bias=False)
        self.bn1 = nn.BatchNorm1d(size)

    def forward(
        self, features: Float[Tensor, "batch dim h w d frame"]
    ) -> Float[Tensor, "batch size"]:
        """Return vectors of length one; in training each depends on its whole batch."""
        return F.normalize(self.bn1(self.fc1(pool(features))), dim=1)


def make_head(
    name: HeadName, dim: int, *, classes: int = 2, size: int = EMBEDDING_SIZE
) -> LinearHead | HiddenHead | EmbeddingHead:
    """Build a head by upstream's name.

    Parameters
    ----------
    name : {"clf_mlp_v1", "clf_mlp_v2", "reg_mlp", "emb_mlp"}
    dim : int
        Channels of the feature map.
    classes : int
        Of a classification; two need one logit.
    size : int
        Of an embedding.

    Raises
    ------
    ValueError
        Another name.
    """
    outputs = 1 if classes == 2 else classes
    if name == "clf_mlp_v1":
        return LinearHead(dim, outputs)
    if name == "clf_mlp_v2":
        return HiddenHead(dim, outputs)
    if name == "reg_mlp":
        return LinearHead(dim)
    if name == "emb_mlp":
        return EmbeddingHead(dim, size)
    raise ValueError(f"no head {name!r}; clf_mlp_v1, clf_mlp_v2, reg_mlp or emb_mlp")


def head_like(
    tensors: Mapping[str, Tensor], dim: int
) -> LinearHead | HiddenHead | EmbeddingHead | None:
    """Build the head whose tensors a checkpoint holds; None where it holds none.

    A regression's and a two-class classification's look alike, and are the same function.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Under upstream's names within the head (``head.weight``, ...).
    dim : int
        Channels of the feature map.
    """
    if "fc1.weight" in tensors:
        return EmbeddingHead(dim, len(tensors["fc1.weight"]))
    if "head.weight" not in tensors:
        return None
    kind = HiddenHead if "hidden.weight" in tensors else LinearHead
    return kind(dim, len(tensors["head.weight"]))
