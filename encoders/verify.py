"""Whether weights are what they should be: keys, symmetries, and a fingerprint to compare.

Two people with the same checkpoint who run `verify_encoder` get the same `Fingerprint.tensors`,
bit for bit, and the same `Fingerprint.features`: features of one made-up input, computed in
float64 and rounded to a hundred-thousandth of the largest. Machines, torch versions and thread
counts move float64 features by some 1e-12 of the largest or less, so the rounding tells
computations apart and not machines. A number can lie so near the middle between two roundings that
machines round it apart: with a thousand numbers, about twice in ten thousand fingerprints. The
numbers shown beside the fingerprint then agree while the fingerprint does not.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.base import (
    BrainEncoder,
    DnaEncoder,
    Encoder,
    EncoderSpec,
    ParcelInput,
    VolumeInput,
    WindowInput,
)
from encoders.errors import InputError, Problem
from encoders.registry import load_encoder
from encoders.weights import read_weights

# Largest difference, relative to the largest feature, that rounding explains.
LIMITS = {"float64": 1e-9, "float32": 1e-4}
_ROUNDING = 1e5
_WINDOW_BP = 1_000
_PARCELS, _FRAMES = 50, 100
_COMPLEMENT = str.maketrans("ACGTN", "TGCAN")


@dataclass(frozen=True)
class KeyReport:
    """What became of a checkpoint's tensors; nothing is missing, or it would not have loaded.

    Parameters
    ----------
    stored, used : int
        Tensors in the checkpoint, and those that fill the encoder's network.
    set_aside : dict of str to int
        Tensors that the features do not need (decoders, heads, second copies of tied ones), by
        the first part of their names.
    numbers : int
        Numbers in the checkpoint.
    dtypes : dict of str to int
        Tensors by stored type.
    """

    stored: int
    used: int
    set_aside: dict[str, int]
    numbers: int
    dtypes: dict[str, int]


@dataclass(frozen=True)
class Check:
    """One symmetry that features must have.

    Parameters
    ----------
    what : str
    apart : float
        Largest difference found, relative to the largest feature.
    limit : float
        Largest difference that rounding explains.
    """

    what: str
    apart: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit."""
        return self.apart <= self.limit


@dataclass(frozen=True)
class Fingerprint:
    """What two people compare.

    Parameters
    ----------
    tensors : str
        First 16 hex digits of the spec's ``weights_sha256``.
    features : str or None
        16 hex digits over the rounded features; None in float32, whose rounding differs between
        machines.
    shape : tuple of int
        Shape of the features.
    norm : float
        Root of the sum of their squares.
    first : tuple of float
        The first of them.
    """

    tensors: str
    features: str | None
    shape: tuple[int, ...]
    norm: float
    first: tuple[float, ...]


@dataclass(frozen=True)
class Verification:
    """All that `verify_encoder` found.

    Parameters
    ----------
    spec : EncoderSpec
    keys : KeyReport or None
        None for random weights.
    checks : tuple of Check
    fingerprint : Fingerprint
    """

    spec: EncoderSpec
    keys: KeyReport | None
    checks: tuple[Check, ...]
    fingerprint: Fingerprint

    @property
    def passed(self) -> bool:
        """Whether all checks did."""
        return all(check.passed for check in self.checks)


def verify_encoder(
    name: str,
    weights: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float64",
    seed: int = 0,
) -> Verification:
    """Load an encoder strictly, check its symmetries, and take its fingerprint.

    Parameters
    ----------
    name, weights, config, revision, device
        As `encoders.load_encoder`.
    dtype : {"float64", "float32"}
        Arithmetic; float32 for networks that are too large otherwise, without `features`
        fingerprint.
    seed : int
        Seed of the input, and of the weights where none are given.

    Returns
    -------
    Verification

    Raises
    ------
    InputError
        As `encoders.load_encoder`, all that does not fit at once; another dtype.
    """
    if dtype not in LIMITS:
        wanted = f"one of {', '.join(LIMITS)}"
        raise InputError(Problem("bad-dtype", "dtype", f"'{dtype}'", wanted))
    encoder = load_encoder(
        name, weights, config=config, revision=revision, device=device, dtype=dtype, seed=seed
    )
    keys = None if weights is None else report_keys(encoder, weights, revision)
    with torch.no_grad():
        features, checks = _run(encoder, seed, LIMITS[dtype])
    fingerprint = take_fingerprint(features, encoder.spec.weights_sha256, exact=dtype == "float64")
    return Verification(encoder.spec, keys, checks, fingerprint)


def report_keys(encoder: Encoder, weights: str | Path, revision: str | None = None) -> KeyReport:
    """Compare a checkpoint's tensor names with those of the encoder's network.

    Checkpoints may put a prefix before all names of the network, as Lightning's do.
    """
    tensors = read_weights(weights, revision=revision).tensors
    wanted = set(encoder.backbone.state_dict())
    prefix = _common_prefix(set(tensors), wanted)
    used = {prefix + name for name in wanted} & set(tensors)
    aside = Counter(name.partition(".")[0] for name in tensors if name not in used)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return KeyReport(len(tensors), len(used), dict(aside), numbers, dict(dtypes))


def _common_prefix(stored: set[str], wanted: set[str]) -> str:
    """Return the prefix under which most of the wanted names are stored."""
    some = sorted(wanted)[:20]
    prefixes = {name.removesuffix(end) for end in some for name in stored if name.endswith(end)}
    return max(prefixes, key=lambda p: len({p + name for name in wanted} & stored), default="")


def take_fingerprint(features: Tensor, weights_sha256: str, *, exact: bool) -> Fingerprint:
    """Return the fingerprint of features.

    Parameters
    ----------
    features : Tensor
        In float64 for `exact`.
    weights_sha256 : str
    exact : bool
        Whether the features are precise enough for a digest of their rounded values.
    """
    values = features.detach().cpu().double()
    largest = float(values.abs().max())
    rounded = torch.round(values / largest * _ROUNDING).to(torch.int64) if largest else values
    content = [list(values.shape), f"{largest:.5e}", rounded.flatten().tolist()]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return Fingerprint(
        tensors=weights_sha256[:16],
        features=digest if exact else None,
        shape=tuple(values.shape),
        norm=float(values.norm()),
        first=tuple(values.flatten()[:4].tolist()),
    )


def _run(encoder: Encoder, seed: int, limit: float) -> tuple[Tensor, tuple[Check, ...]]:
    if isinstance(encoder, DnaEncoder):
        windows = made_up_windows(encoder.spec, seed)
        features, symmetry = _check_strands(encoder, windows)
        alone = torch.cat([encoder(*encoder.tokenize([window])) for window in windows])
        again = encoder(*encoder.tokenize(windows))
    else:
        assert isinstance(encoder, BrainEncoder)
        segments, xyz = made_up_segments(encoder.spec, seed)
        features = _segment_features(encoder, segments, xyz)
        flipped = _segment_features(encoder, segments.flip(0), xyz)
        symmetry = ("segments in another order give the same features", features, flipped.flip(0))
        parts = [_segment_features(encoder, one, xyz) for one in segments.split(1)]
        alone, again = torch.cat(parts), _segment_features(encoder, segments, xyz)
    checks = (
        _check(*symmetry, limit),
        _check("a feature is the same alone and in a batch", features, alone, limit),
        _check("the same input gives the same bits", features, again, 0.0),
    )
    return features, checks


def _check_strands(
    encoder: DnaEncoder, windows: list[str]
) -> tuple[Tensor, tuple[str, Tensor, Tensor]]:
    features = encoder(*encoder.tokenize(windows))
    complements = [window.translate(_COMPLEMENT)[::-1] for window in windows]
    exchanged = encoder(*encoder.tokenize(complements)).flip(-1)
    return features, ("the reverse complement exchanges the strands", features, exchanged)


def _segment_features(encoder: BrainEncoder, segments: Tensor, xyz: Tensor | None) -> Tensor:
    like = next((p for p in encoder.parameters()), None)
    segments = segments if like is None else segments.to(like)
    if xyz is not None:
        xyz = xyz.to(segments.device).expand(len(segments), -1, -1)
    return encoder(segments, xyz)


def _check(what: str, one: Tensor, other: Tensor, limit: float) -> Check:
    one, other = one.double(), other.double()
    largest = float(one.abs().max()) or 1.0
    apart = float((one - other).abs().max()) / largest
    # A feature that is not a number differs from everything.
    return Check(what, apart if apart == apart else float("inf"), limit)


def made_up_windows(spec: EncoderSpec, seed: int) -> list[str]:
    """Return two made-up windows, of different length, one with an unknown base.

    They depend on the seed and on the encoder's longest window alone.
    """
    assert isinstance(spec.input, WindowInput)
    longest = min(_WINDOW_BP, spec.input.max_length_bp or _WINDOW_BP)
    letters = np.array(list("ACGT"))
    bases = "".join(letters[_raw(seed, 2 * longest) % 4])
    first, second = bases[:longest], bases[longest : longest + max(1, 3 * longest // 4)]
    return [first, second[:-1] + "N" if len(second) > 1 else second]


def made_up_segments(spec: EncoderSpec, seed: int) -> tuple[Tensor, Tensor | None]:
    """Return two made-up segments in float64, and parcel coordinates where they are wanted.

    Uniform noise of mean 0 and variance 1 that depends on seed and size alone. An encoder that
    leaves the size open gets 50 parcels and 100 frames.
    """
    wanted = spec.input
    if isinstance(wanted, VolumeInput):
        return _noise(seed, 2, 1, *wanted.shape, wanted.frames), None
    assert isinstance(wanted, ParcelInput)
    parcels, frames = wanted.parcels or _PARCELS, wanted.frames or _FRAMES
    xyz = 40 * _noise(seed + 1, 1, parcels, 3) if wanted.needs_xyz else None
    return _noise(seed, 2, parcels, frames), xyz


def _noise(seed: int, *shape: int) -> Tensor:
    raw = _raw(seed, int(np.prod(shape)))
    uniform = (raw >> np.uint64(11)).astype(np.float64) / 2**53
    return torch.from_numpy((uniform - 0.5) * 12**0.5).reshape(shape)


def _raw(seed: int, count: int) -> np.ndarray:
    # The raw stream is the one part of NumPy's random numbers that is promised never to change.
    return np.random.PCG64(seed).random_raw(count)
