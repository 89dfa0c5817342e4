"""The encoders a bundle names, loaded and held to the weights its towers were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from encoders.errors import InputError, Problem
from multimodal.features.encode import DOSAGE
from multimodal.latent.bundle import Bundle
from multimodal.latent.delta import apply_bundle_delta

if TYPE_CHECKING:
    from encoders.base import Encoder

_KEYS = ("revision", "config", "seed", "dtype")


def load_bundle_encoder(
    bundle: Bundle, side: str, weights: str | None = None, device: str = "cpu"
) -> Encoder | str:
    """Load a bundle's encoder, check its weights, and change them as fine-tuning did.

    Parameters
    ----------
    bundle : Bundle
    side : {"dna", "brain"}
    weights : str, optional
        Where the weights lie on this machine: wanted where the bundle was trained with a local
        file or folder.
    device : str

    Returns
    -------
    Encoder or "dosage"

    Raises
    ------
    InputError
        Other weights than the bundle's, or none where it wants some; a change that does not fit.
    """
    from encoders import load_encoder
    from encoders.base import BrainEncoder, DnaEncoder

    section: dict[str, Any] = bundle.manifest[side]
    if side == "dna" and section["name"] == DOSAGE:
        return DOSAGE
    if weights is None and (local := section.get("local_weights")) is not None:
        raise InputError(
            Problem(
                "weights-missing",
                f"{side}_weights",
                f"the bundle was trained with a local file or folder, '{local}'",
                "where it lies on this machine",
                f"set {side}_weights=PATH",
            )
        )
    given = {name: section[name] for name in _KEYS if name in section}
    if weights is not None:
        given["revision"] = None if weights != section.get("weights") else given.get("revision")
    encoder = load_encoder(
        section["name"], weights or section.get("weights"), device=device, **given
    )
    wanted_class = DnaEncoder if side == "dna" else BrainEncoder
    if not isinstance(encoder, wanted_class):
        found = f"'{encoder.spec.name}' encodes {encoder.spec.modality}"
        raise InputError(Problem("wrong-side", side, found, f"a {wanted_class.__name__}"))
    wanted = section["spec"]
    if encoder.spec.weights_sha256 != wanted["weights_sha256"]:
        raise InputError(
            Problem(
                "other-weights",
                f"{side} weights {encoder.spec.weights_id}",
                f"digest {encoder.spec.weights_sha256[:12]}",
                f"the bundle's: {wanted.get('weights_id')}, digest {wanted['weights_sha256'][:12]}",
                f"set {side}_weights to the file or folder the bundle was trained with",
            )
        )
    apply_bundle_delta(bundle.path, bundle.manifest, side, encoder)
    return encoder
