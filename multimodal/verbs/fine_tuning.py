"""Fine-tuning from the command line: encoders for the training step, and features after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.errors import InputError, Problem
from encoders.licences import forbids_derivatives
from multimodal.align.finetune.options import SIDES, EncoderTuning, FineTuneOptions
from multimodal.align.options import AlignOptions
from multimodal.bold.options import BoldOptions
from multimodal.cohort.table import Cohort
from multimodal.features.encode import DOSAGE
from multimodal.features.options import GenomeOptions
from multimodal.verbs.console import Stages, say
from multimodal.verbs.pipeline import Joint, Preparation, load_side
from multimodal.verbs.settings import options

if TYPE_CHECKING:
    from multimodal.align.finetune.delta import Delta
    from multimodal.align.finetune.tuned import TunedEncoder

_WITHOUT_WEIGHTS = (DOSAGE, "fc")
_LEARNT_IN = ("float32", "float64")
_LOOKED_AT = 8


def refuse_untunable(how: Preparation, choices: FineTuneOptions) -> None:
    """Look at what is to be fine-tuned before anything costly is done.

    Says where something is set of an encoder that stays frozen.

    Raises
    ------
    InputError
        A side without weights or in half precision, or LoRA without peft.
    """
    from multimodal.align.finetune.adapters import refuse_without_peft

    problems: list[Problem] = []
    for side in SIDES:
        if side not in choices.sides and choices.of(side) != EncoderTuning():
            key = f"align.fine_tune.{side}"
            say(f"{'note':<10} {side} stays frozen, whatever {key} says: it is not among the sides")
    for name in ("gradient_checkpointing", "bf16"):
        if getattr(choices, name) and not choices.sides:
            say(f"{'note':<10} align.fine_tune.{name} does nothing: both encoders stay frozen")
    for side in choices.sides:
        name = getattr(how, side).get("name")
        where = f"align.fine_tune.sides=[{', '.join(choices.sides)}]"
        if name in _WITHOUT_WEIGHTS:
            found, wanted = f"{side}={name} has no weights", "an encoder that can learn"
            problems.append(Problem("nothing-to-tune", where, found, wanted, f"set {side}=ENCODER"))
        dtype = getattr(how, side).get("dtype") or "float32"
        if dtype not in _LEARNT_IN:
            fix = f"set {side}.dtype=float32, and align.fine_tune.bf16=true for speed"
            found = f"{dtype}, whose rounding swallows small steps"
            problems.append(
                Problem("too-narrow", f"{side}.dtype", found, " or ".join(_LEARNT_IN), fix)
            )
        if choices.of(side).method == "lora":
            try:
                refuse_without_peft(f"align.fine_tune.{side}")
            except InputError as error:
                problems.extend(error.problems)
    if problems:
        raise InputError(problems)


def tuned_encoders(
    joint: Joint,
    how: Preparation,
    choices: AlignOptions,
    train_rows: np.ndarray,
    stages: Stages,
) -> dict[str, TunedEncoder]:
    """Return the encoders that learn, by side, with all that they read.

    Parameters
    ----------
    joint : Joint
        Participants and their stored features.
    how : Preparation
    choices : AlignOptions
    train_rows : ndarray of int
    stages : Stages

    Raises
    ------
    InputError
        An encoder that cannot learn as asked for, or files that are not those encoded.
    """
    if not choices.fine_tune.sides:
        return {}
    from multimodal.align.finetune.cohort import brain_inputs, genome_inputs
    from multimodal.align.finetune.tuned import TunedEncoder

    found = {}
    with stages.stage("prepare", f"{' and '.join(choices.fine_tune.sides)} for fine-tuning"):
        for side in choices.fine_tune.sides:
            encoder: Any = load_side(getattr(how, side), side)
            _say_licence(side, encoder.spec.weight_license)
            inputs: Any
            if side == "dna":
                inputs = genome_inputs(
                    joint.cohort, joint.gene, encoder,
                    options(GenomeOptions, how.genome, "genome"),
                    strand_merge=choices.strand_merge,
                    batch_size=int(how.dna.get("batch_size", 8)),
                )  # fmt: skip
            else:
                inputs = brain_inputs(
                    joint.cohort, joint.brain, encoder, options(BoldOptions, how.bold, "bold"),
                    weighting=choices.segment_weighting,
                    batch_size=int(how.brain.get("batch_size", 16)),
                )  # fmt: skip
            found[side] = TunedEncoder(side, encoder, inputs, choices.fine_tune, choices.seed)
            if choices.fine_tune.bf16:
                _say_rounding(side, found[side].rounding_ratio(train_rows[:_LOOKED_AT]))
    return found


def encode_tuned(
    cohort: Cohort,
    how: Preparation,
    deltas: Mapping[str, Delta],
    stores: Mapping[str, Path],
    stages: Stages,
) -> dict[str, Path]:
    """Encode the cohort with what was learned, into stores beside those of the frozen encoders.

    The encoders are loaded afresh and changed as those of the bundle will be.

    Parameters
    ----------
    cohort : Cohort
    how : Preparation
    deltas : mapping of str to Delta
        By side.
    stores : mapping of str to Path
        The frozen encoders'; of sides that did not learn they stay.
    stages : Stages
    """
    from encoders.weights import tensors_sha256
    from multimodal.align.finetune.delta import apply_delta, join_sides

    digest = tensors_sha256(join_sides(deltas))[:16]
    beside = replace(how, features_dir=how.features_dir / "fine_tuned" / digest)
    found = dict(stores)
    for side, delta in deltas.items():
        encoder: Any = load_side(getattr(how, side), side)
        with stages.stage(f"encode {side}", f"{encoder.spec.name}, fine-tuned"):
            apply_delta(encoder, delta, f"fine-tuned {side}")
            encode = beside.encode_dna if side == "dna" else beside.encode_brain
            found[side] = encode(cohort, encoder)
    return found


def _say_rounding(side: str, ratio: float) -> None:
    told = f"bf16: between people, {side} features vary {ratio:.3g} times as much as by rounding"
    advice = "; rounding is all it would learn from, leave bf16 off" if ratio < 1 else ""
    say(f"{'note':<10} {told}{advice}")


def _say_licence(side: str, licence: str) -> None:
    if forbids_derivatives(licence):
        say(
            f"{'note':<10} {side} weights are under {licence}: what fine-tuning makes of them is "
            "for use here, and `genebold push` refuses it"
        )
