"""Our encoders at their published sizes, in a few words each, without building any of them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Entry:
    """One line of ``genebold encoders list``.

    Parameters
    ----------
    modality : {"dna", "brain"}
    feature_dim : int or None
        None where it follows from the input.
    parameters : int
        Trainable numbers of the encoder, decoders and heads apart.
    takes : str
        The input, in words.
    code_license, weight_license : str
        SPDX identifiers of the published code and weights; ``"none"`` without weights.
    """

    modality: Literal["dna", "brain"]
    feature_dim: int | None
    parameters: int
    takes: str
    code_license: str
    weight_license: str


_CADUCEUS = Entry("dna", 256, 7_725_312, "window, up to 131,072 bp", "Apache-2.0", "Apache-2.0")
_BRAINLM_INPUT = "424 parcels (A424), 200 frames, TR 0.735 s"

CATALOGUE = {
    "dosage": Entry("dna", None, 0, "VCF or BCF dosages", "Apache-2.0", "none"),
    "caduceus": _CADUCEUS,
    "caduceus_ps": _CADUCEUS,
    "caduceus_ph": _CADUCEUS,
    "brainlm_nystromformer": Entry(
        "brain", 512, 8_426_512, _BRAINLM_INPUT, "Apache-2.0", "CC-BY-NC-ND-4.0"
    ),
    "brainlm_vitmae": Entry(
        "brain", 768, 85_647_360, _BRAINLM_INPUT, "Apache-2.0", "CC-BY-NC-ND-4.0"
    ),
    "fc": Entry("brain", None, 0, "any parcels, whole runs", "Apache-2.0", "none"),
}
