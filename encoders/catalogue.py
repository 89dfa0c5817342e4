"""Our encoders at their published sizes, in a few words each, without building any of them.

An installed package's encoder joins by an attribute ``entry`` of its factory, an `Entry`; without
one it is built to be described.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from encoders.registry import find_factory, load_encoder

if TYPE_CHECKING:
    from encoders.base import EncoderSpec, ParcelInput, VolumeInput, WindowInput


@dataclass(frozen=True)
class Entry:
    """One line of ``genebold encoders list``.

    Parameters
    ----------
    modality : {"dna", "brain"}
    feature_dim : int or None
        None where it follows from the input, or the model decides.
    parameters : int or None
        Trainable numbers of the encoder, decoders and heads apart; None where the model decides.
    takes : str
        The input, in words.
    code_license, weight_license : str
        SPDX identifiers of the published code and weights; ``"none"`` without weights.
    pretraining_cohorts : tuple of str
        What the published weights have seen.
    published : tuple of str
        Where the published weights are: hub ids of repositories, or addresses.
    """

    modality: Literal["dna", "brain"]
    feature_dim: int | None
    parameters: int | None
    takes: str
    code_license: str
    weight_license: str
    pretraining_cohorts: tuple[str, ...] = ()
    published: tuple[str, ...] = ()


def _caduceus(kind: str) -> Entry:
    lab = "kuleshov-group/caduceus"
    return Entry(
        *("dna", 256, 7_725_312, "window, up to 131,072 bp", "Apache-2.0", "Apache-2.0"),
        pretraining_cohorts=("human reference genome hg38",),
        published=tuple(f"{lab}-{k}_seqlen-131k_d_model-256_n_layer-16" for k in kind.split()),
    )


def _brainlm(feature_dim: int, parameters: int) -> Entry:
    takes = "424 parcels (A424), 200 frames, TR 0.735 s"
    return Entry(
        *("brain", feature_dim, parameters, takes, "Apache-2.0", "CC-BY-NC-ND-4.0"),
        pretraining_cohorts=("UK Biobank", "HCP"),
        published=("vandijklab/brainlm",),
    )


CATALOGUE = {
    "dosage": Entry("dna", None, 0, "VCF or BCF dosages", "Apache-2.0", "none"),
    "caduceus": _caduceus("ps ph"),
    "caduceus_ps": _caduceus("ps"),
    "caduceus_ph": _caduceus("ph"),
    # Sizes, weights and their licence are those of the model it is given.
    "huggingface": Entry(
        "dna", None, None, "window, as its model has it", "Apache-2.0", "the model's"
    ),
    "brainlm_nystromformer": _brainlm(512, 8_426_512),
    "brainlm_vitmae": _brainlm(768, 85_647_360),
    "swift": Entry(
        *("brain", 288, 4_315_212, "96 x 96 x 96 voxels of 2 mm, 20 frames"),
        *("Apache-2.0", "Apache-2.0"),
        pretraining_cohorts=("UK Biobank", "HCP", "ABCD"),
        published=("https://github.com/Transconnectome/SwiFT",),
    ),
    "brainmt": Entry(
        *("brain", 512, 39_104_961, "91 x 109 x 91 voxels of 2 mm, 200 frames", "MIT", "none")
    ),
    "fc": Entry("brain", None, 0, "any parcels, whole runs", "Apache-2.0", "none"),
}


def find_entry(name: str) -> Entry:
    """Describe an encoder, ours or an installed package's.

    Raises
    ------
    InputError
        No such encoder; one that neither has an entry nor can be built without weights.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    entry = getattr(find_factory(name), "entry", None)
    return entry if isinstance(entry, Entry) else describe(load_encoder(name).spec)


def describe(spec: EncoderSpec) -> Entry:
    """Return the entry of a loaded encoder."""
    return Entry(
        modality=spec.modality,
        feature_dim=spec.feature_dim,
        parameters=spec.parameters,
        takes=describe_input(spec.input),
        code_license=spec.code_license,
        weight_license=spec.weight_license,
        pretraining_cohorts=spec.pretraining_cohorts,
    )


def describe_input(wanted: WindowInput | ParcelInput | VolumeInput) -> str:
    """Say in words what an encoder takes."""
    from encoders.base import ParcelInput, WindowInput

    if isinstance(wanted, WindowInput):
        longest = wanted.max_length_bp
        return f"window, up to {longest:,} bp" if longest else "window of any length"
    if isinstance(wanted, ParcelInput):
        atlas = f" ({wanted.atlas})" if wanted.atlas else ""
        words = [f"{wanted.parcels or 'any'} parcels{atlas}"]
        words.append(f"{wanted.frames} frames" if wanted.frames else "whole runs")
    else:
        size = f" of {wanted.voxel_mm:g} mm" if wanted.voxel_mm else ""
        words = [f"{' x '.join(map(str, wanted.shape))} voxels{size}", f"{wanted.frames} frames"]
    if wanted.tr_s:
        words.append(f"TR {wanted.tr_s:g} s")
    return ", ".join(words)
