"""A modality's whole way from pooled features to latents, with all state it needs in one module."""

from dataclasses import asdict, dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from encoders.errors import InputError, Problem
from projectors.heads import HEAD_KINDS, HIDDEN_DIM, LATENT_DIM, Head, HeadKind
from projectors.pooling import REGION_POOLINGS, AttentionPool, RegionPooling
from projectors.standardise import Standardiser, StandardiserOptions


@dataclass(frozen=True)
class TowerOptions:
    """How a tower is built.

    Parameters
    ----------
    pooling : {"concat", "mean", "attention"}
        How windows come together. ``concat`` reduces all windows by one PCA; ``mean`` and
        ``attention`` standardise each window and share one basis.
    head : {"mlp", "linear"}
    hidden_dim, latent_dim : int
        Widths of the head.
    dropout : float
    attention_heads : int
        Queries of ``attention``.
    standardiser : StandardiserOptions
    """

    pooling: RegionPooling = "concat"
    head: HeadKind = "mlp"
    hidden_dim: int = HIDDEN_DIM
    latent_dim: int = LATENT_DIM
    dropout: float = 0.1
    attention_heads: int = 4
    standardiser: StandardiserOptions = field(default_factory=StandardiserOptions)

    def __post_init__(self) -> None:
        checks = [
            ("pooling", self.pooling in REGION_POOLINGS, " or ".join(REGION_POOLINGS)),
            ("head", self.head in HEAD_KINDS, " or ".join(HEAD_KINDS)),
            ("dropout", 0 <= self.dropout < 1, "at least 0, less than 1"),
            ("hidden_dim", self.hidden_dim >= 1, "at least 1"),
            ("latent_dim", self.latent_dim >= 2, "at least 2"),
            ("attention_heads", self.attention_heads >= 1, "at least 1"),
        ]
        problems = [
            Problem("bad-tower-option", f"tower.{name}", repr(getattr(self, name)), wanted)
            for name, good, wanted in checks
            if not good
        ]
        if problems:
            raise InputError(problems)

    def as_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TowerOptions":
        """Make options from what `as_dict` gives."""
        standardiser = StandardiserOptions(**values["standardiser"])
        return cls(**{**values, "standardiser": standardiser})


class Tower(nn.Module):
    """Pooled features in, unit-length latents out: standardiser, pooling over windows, head.

    Make one with `Tower.fit`, or an unfitted one with `Tower.from_config` to load a state into.
    All fitted numbers are parameters or buffers, so the state dict is complete.

    Parameters
    ----------
    options : TowerOptions
    standardiser : Standardiser
        Fitted, or of the right sizes.
    """

    def __init__(self, options: TowerOptions, standardiser: Standardiser) -> None:
        super().__init__()
        self.options = options
        self.standardiser = standardiser
        self.attention: AttentionPool | None = None
        dim = standardiser.out_dim
        if options.pooling == "attention":
            self.attention = AttentionPool(dim, standardiser.windows, options.attention_heads)
            dim = self.attention.out_dim
        self.head = Head(dim, options.head, options.hidden_dim, options.latent_dim, options.dropout)

    @classmethod
    def fit(
        cls,
        features: Float[Tensor, "subject window dim"],
        options: TowerOptions,
        covariates: Float[Tensor, "subject covariate"] | None = None,
    ) -> "Tower":
        """Fit the standardiser on training subjects and start the head from random weights.

        Parameters
        ----------
        features : Tensor [n, W, D] float64
            Pooled features of the training subjects only (a brain has W = 1).
        options : TowerOptions
        covariates : Tensor [n, c], optional
            Regressed out of the features where given.
        """
        standardiser = Standardiser.fit(
            features,
            options.standardiser,
            joined=options.pooling == "concat",
            covariates=covariates,
        )
        return cls(options, standardiser)

    def config(self) -> dict[str, Any]:
        """Return all that rebuilds the tower but its state, as plain JSON-ready values."""
        return {"options": self.options.as_dict(), "sizes": self.standardiser.sizes()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Tower":
        """Make an unfitted tower from what `config` gave; load its state dict next."""
        return cls(TowerOptions.from_dict(config["options"]), Standardiser(**config["sizes"]))

    def standardise(
        self,
        features: Float[Tensor, "subject window dim"],
        covariates: Float[Tensor, "subject covariate"] | None = None,
    ) -> Float[Tensor, "subject *out"]:  # noqa: F821  # a shape
        """Fixed part of the tower, in float64: features [n, W, D] to [n, k] or [n, W, k]."""
        standardised: Tensor = self.standardiser(features, covariates)
        return standardised

    def pool(self, standardised: Float[Tensor, "subject *out"]) -> Float[Tensor, "subject dim"]:  # noqa: F821  # a shape
        """Bring windows together: [n, W, k] to the head's input; [n, k] passes through."""
        if standardised.dim() == 2:
            return standardised
        if self.attention is None:
            return standardised.mean(dim=1)
        pooled: Tensor = self.attention(standardised)
        return pooled

    def project(
        self,
        standardised: Float[Tensor, "subject *out"],  # noqa: F821  # a shape
    ) -> Float[Tensor, "subject latent"]:
        """Trained part of the tower: standardised features to unit-length latents."""
        latents: Tensor = self.head(self.pool(standardised))
        return latents

    def forward(
        self,
        features: Float[Tensor, "subject window dim"],
        covariates: Float[Tensor, "subject covariate"] | None = None,
    ) -> Float[Tensor, "subject latent"]:
        """Pooled features [n, W, D] to unit-length latents [n, latent_dim]."""
        dtype = next(self.head.parameters()).dtype
        return self.project(self.standardise(features, covariates).to(dtype))
