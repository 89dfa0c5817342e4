"""One Caduceus-PS block of the published width: ours beside upstream's slow path and its peers.

One thread, inference, medians of five rounds in which each contender runs once. The peers
(transformers' Mamba without kernels, mambapy) are put into the same arrangement as the yardstick:
both strands in the batch, each direction flipped and projected for itself, with the same weights.
Ours runs as the plain layer, and as a layer's share of the whole encoder's pooled forward. Beside
them stand a block's matrix products and its scans alone: the floor on this machine.

    python benchmarks/block.py            # all, and the table in benchmarks/results
    python benchmarks/block.py --short    # one short length, two rounds; nothing is written
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from floor import STRANDS, Bare, layer_of, layers_in
from tables import at_least, heading, markdown, publish
from timing import Timed, median_seconds, timed
from torch import Tensor, nn
from yardstick import TwoStrandBlock

from encoders import load_encoder
from encoders.base import DnaEncoder
from encoders.mamba import Mamba

YARDSTICK = "yardstick"
# What a block cannot do without, and nothing else: no judgement, a floor for this machine.
PRODUCTS, SCANS, BOTH = "its products alone", "its scans alone", "both, and nothing else"
# Asked for from this length on, in bases.
FLOAT32_BOUND, BFLOAT16_BOUND, BOUND_FROM = 28, 1.5, 1024
AGREES = 1e-4


@dataclass(frozen=True)
class Sizes:
    """Lengths in bases, rounds, and the longest that upstream's way and the peers are run at."""

    lengths: tuple[int, ...]
    rounds: int
    peers_up_to: int


FULL = Sizes((1024, 4096, 16_384), 5, peers_up_to=4096)
SHORT = Sizes((512,), 2, peers_up_to=512)


def transformers_mamba(mamba: Mamba) -> nn.Module:
    """Return transformers' Mamba mixer with the same weights; without kernels it runs slowly."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(
        hidden_size=mamba.in_proj.in_features,
        state_size=mamba.ssm.d_state,
        expand=mamba.ssm.expand,
        conv_kernel=mamba.ssm.d_conv,
        time_step_rank=mamba.dt_proj.in_features,
        use_bias=mamba.ssm.bias,
        use_conv_bias=mamba.ssm.conv_bias,
    )
    return _with_weights(MambaMixer(config, layer_idx=0), mamba)


def mambapy_mamba(mamba: Mamba) -> nn.Module:
    """Return mambapy's Mamba block with the same weights; it scans in parallel, in plain torch."""
    from mambapy.mamba import MambaBlock, MambaConfig

    config = MambaConfig(
        d_model=mamba.in_proj.in_features,
        n_layers=1,
        d_state=mamba.ssm.d_state,
        expand_factor=mamba.ssm.expand,
        d_conv=mamba.ssm.d_conv,
        dt_rank=mamba.dt_proj.in_features,
        bias=mamba.ssm.bias,
        conv_bias=mamba.ssm.conv_bias,
    )
    return _with_weights(MambaBlock(config), mamba)


PEERS: dict[str, Callable[[Mamba], nn.Module]] = {
    "transformers": transformers_mamba,
    "mambapy": mambapy_mamba,
}


def _with_weights(peer: nn.Module, mamba: Mamba) -> nn.Module:
    # Both peers name their parameters as upstream does.
    peer.load_state_dict(mamba.state_dict())
    return peer.eval()


@dataclass(frozen=True)
class Networks:
    """The published network with random weights, in both precisions, and the peers' blocks."""

    encoders: dict[str, DnaEncoder]
    slow: dict[str, nn.Module]

    @classmethod
    def load(cls) -> "Networks":
        """Make ours, and the blocks of all peers that are installed."""
        names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        encoders = {name: load_encoder("caduceus_ps", dtype=name) for name in names}
        layer = layer_of(encoders["float32"])
        slow = {YARDSTICK: TwoStrandBlock(layer)}
        slow |= {
            name: TwoStrandBlock(layer, make)
            for name, make in PEERS.items()
            if find_spec(name) is not None
        }
        return cls(encoders, slow)  # type: ignore[arg-type]

    def blocks(self) -> dict[str, tuple[nn.Module, torch.dtype]]:
        """Return every single block, and the type of the hidden states it takes."""
        found = {name: (block, torch.float32) for name, block in self.slow.items()}
        found |= {
            f"ours, layer, {name}": (layer_of(encoder), getattr(torch, name))
            for name, encoder in self.encoders.items()
        }
        return found


def states(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw hidden states and a residual [1, L, 2 D] such as a layer in the middle takes."""
    generator = torch.Generator().manual_seed(length)
    hidden, residual = torch.randn(2, 1, length, 2 * width, generator=generator)
    return hidden, residual


def block_runs(networks: Networks, length: int, names: list[str]) -> dict[str, Timed]:
    """Return the named single blocks, timed at a length."""
    width = networks.encoders["float32"].spec.feature_dim
    assert width is not None
    hidden, residual = states(length, width)
    blocks = networks.blocks()
    return {
        name: timed(
            torch.inference_mode()(partial(blocks[name][0], hidden.to(blocks[name][1]), residual))
        )
        for name in names
    }


def encoder_runs(networks: Networks, length: int) -> dict[str, Timed]:
    """Return the whole encoders' pooled forward at a length, timed."""
    letters = torch.randint(0, 4, (length,), generator=torch.Generator().manual_seed(length))
    window = "".join("ACGT"[letter] for letter in letters.tolist())
    return {
        f"ours, share of the encoder, {name}": timed(
            torch.inference_mode()(partial(encoder, *encoder.tokenize([window])))
        )
        for name, encoder in networks.encoders.items()
    }


def bare_runs(networks: Networks, length: int) -> dict[str, Timed]:
    """Return what no block of ours can do without, timed at a length in bases; see `floor`."""
    bare = Bare(networks.encoders["float32"], length)
    tiles = STRANDS * length // bare.bases

    @torch.inference_mode()
    def repeat(part: Callable[[], None]) -> None:
        for _ in range(tiles):
            part()

    parts = {PRODUCTS: bare.multiply, SCANS: bare.scan}
    return {name: timed(partial(repeat, part)) for name, part in parts.items()}


def check_agreement(networks: Networks, length: int = 96) -> dict[str, float]:
    """Return how far each block's output is from the yardstick's, over the latter's RMS.

    Raises
    ------
    RuntimeError
        One of those in float32 computes something else.
    """
    width = networks.encoders["float32"].spec.feature_dim
    assert width is not None
    hidden, residual = states(length, width)
    found = {}
    with torch.inference_mode():
        wanted, _ = networks.slow[YARDSTICK](hidden, residual)
        for name, (block, dtype) in networks.blocks().items():
            given, _ = block(hidden.to(dtype), residual)
            apart = (given.float() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
            found[name] = float(apart)
            if dtype == torch.float32 and found[name] > AGREES:
                raise RuntimeError(f"{name} differs from the yardstick by {found[name]:.1e}")
    return found


def yardstick_seconds(length: int, rounds: int) -> float:
    """Return the median seconds of the yardstick's block on one thread at a length in bases."""
    networks = Networks.load()
    runs = block_runs(networks, length, [YARDSTICK])
    return median_seconds(runs, rounds)[YARDSTICK]


def measure(networks: Networks, length: int, sizes: Sizes) -> dict[str, float]:
    """Return the seconds of one block at a length, by contender; shares are already divided."""
    names = list(networks.blocks())
    if length > sizes.peers_up_to:
        names = [name for name in names if name not in networks.slow and "bfloat16" not in name]
    blocks = {**block_runs(networks, length, names), **bare_runs(networks, length)}
    taken = median_seconds({**blocks, **encoder_runs(networks, length)}, sizes.rounds)
    depth = layers_in(networks.encoders["float32"])
    found = {name: s if name in blocks else s / depth for name, s in taken.items()}
    found[BOTH] = found[PRODUCTS] + found[SCANS]
    return found


def table(networks: Networks, found: dict[int, dict[str, float]]) -> list[str]:
    """Show milliseconds by length, and how many times faster than whom."""
    apart = check_agreement(networks)
    names = list(dict.fromkeys(name for taken in found.values() for name in taken))
    rows = []
    for name in names:
        cells = [_cell(name, length, taken) for length, taken in found.items()]
        rows.append([name, *cells, f"{apart[name]:.0e}" if name in apart else ""])
    absent = [name for name in PEERS if name not in networks.slow]
    rows += [[name, *["not installed"] * len(found), ""] for name in absent]
    header = ["block", *(f"{length:,} bases" for length in found), "differs by"]
    return markdown(header, rows)


def _cell(name: str, length: int, taken: dict[str, float]) -> str:
    """Return the milliseconds, and the ratio that this contender is judged by."""
    if name not in taken:
        return ""
    shown = f"{taken[name] * 1e3:,.1f} ms"
    in_bfloat16 = name.endswith("bfloat16")
    against = name.replace("bfloat16", "float32") if in_bfloat16 else YARDSTICK
    if name == against or against not in taken:
        return shown
    faster = taken[against] / taken[name]
    if length < BOUND_FROM or name in PEERS or name in (PRODUCTS, SCANS, BOTH):
        return f"{shown}, {faster:.1f} times"
    return f"{shown}, {at_least(faster, BFLOAT16_BOUND if in_bfloat16 else FLOAT32_BOUND)}"


def main() -> int:
    """Measure, print and (unless short) write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small and quick; nothing is written")
    short = parser.parse_args().short
    sizes = SHORT if short else FULL
    torch.set_num_threads(1)
    networks = Networks.load()
    found = {length: measure(networks, length, sizes) for length in sizes.lengths}
    encoder = networks.encoders["float32"]
    width, depth = encoder.spec.feature_dim, layers_in(encoder)
    notes = [
        f"Width {width}, both strands and both directions, batch of one, inference, one thread, "
        f"median of {sizes.rounds}.",
        "Times are over the yardstick (upstream's slow path, written anew) in the same run and at "
        "the same",
        "length, those in bfloat16 over ours in float32; empty where it was not run. The share of "
        "the encoder",
        f"is its pooled forward, embedding, last norm and pooling included, over its {depth} "
        "layers. The last",
        "column is the RMS distance from the yardstick's output over that output's RMS. The last "
        "rows are what",
        "a float32 block cannot do without: its products and its scans by the same kernels, "
        "nothing",
        "read from or written to memory that is not in the cache. Their sum is the floor here.",
    ]
    lines = heading("One Caduceus-PS block", notes)
    publish("block", [*lines, *table(networks, found)], write=not short)
    return 0


if __name__ == "__main__":
    sys.exit(main())
