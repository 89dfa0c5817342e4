"""Embedding block by block: resumed, in little memory, past bad scans, and never past the spec."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pytest
from small_bundle import embed_config

from encoders.errors import InputError
from multimodal.align.aligner import Aligner
from multimodal.latent.table import read_latents
from multimodal.verbs.embed import run

CONTEXT = multiprocessing.get_context("fork")


def latents(out: Path) -> bytes:
    return (out / "embedded" / "latents.parquet").read_bytes()


def codes(caught: pytest.ExceptionInfo[InputError]) -> set[str]:
    return {problem.code for problem in caught.value.problems}


def test_blocks_change_nothing_and_everybody_is_counted(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(embed_config(world, tmp_path / "three")) == 0
    said = capsys.readouterr().out
    assert "10 have both, 1 a genome only, 1 a scan only" in said
    assert said.count("fingerprint") == 2
    assert run(embed_config(world, tmp_path / "three")) == 0
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if "fingerprint" in line] == [
        line for line in said.splitlines() if "fingerprint" in line
    ]
    run(embed_config(world, tmp_path / "all", "block_subjects=1000"))
    (first, values), (second, whole) = (
        read_latents(tmp_path / name / "embedded" / "latents.parquet") for name in ("three", "all")
    )
    pd.testing.assert_frame_equal(first, second)
    np.testing.assert_allclose(values, whole, atol=1e-6)
    assert [path.name for path in (tmp_path / "three" / "embedded").glob(".*")] == []


def test_no_more_than_a_block_is_held(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for name in ("embed_genes", "embed_brains"):
        whole = getattr(Aligner, name)

        def counted(self, features, covariates=None, whole=whole):
            seen.append(len(features.participant_ids))
            return whole(self, features, covariates)

        monkeypatch.setattr(Aligner, name, counted)
    run(embed_config(world, tmp_path, "sides=[gene]"))
    assert seen == [3, 3, 3, 2]


def _die_at_step(world: Path, out: Path, step: int, number: int) -> None:
    """Embed, and be killed just before the step-th renaming, or just after it."""
    rename, count = Path.replace, 0

    def counted(self: Path, target: Path) -> Path:
        nonlocal count
        if count == step // 2 and step % 2 == 0:
            os.kill(os.getpid(), number)
        done = rename(self, target)
        if count == step // 2:
            os.kill(os.getpid(), number)
        count += 1
        return done

    Path.replace = counted  # type: ignore[method-assign,assignment]
    run(embed_config(world, out))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_killed_runs_resume_to_the_same_latents(
    world: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run(embed_config(world, tmp_path / "whole"))
    rng = np.random.default_rng()
    out = tmp_path / "killed"
    cut = 0
    # Each run gets a few files further, and is killed again.
    for _ in range(10):
        step = int(rng.integers(0, 12))
        process = CONTEXT.Process(target=_die_at_step, args=(world, out, step, number))
        process.start()
        process.join()
        cut += process.exitcode == -number
    assert cut >= 3
    assert run(embed_config(world, out)) == 0
    assert latents(out) == latents(tmp_path / "whole")


def test_a_finished_block_is_not_done_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multimodal.latent.shards import LatentShards

    with monkeypatch.context() as patch:
        patch.setattr(LatentShards, "join", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(embed_config(world, tmp_path))
    monkeypatch.setattr(Aligner, "embed_genes", None)
    monkeypatch.setattr(Aligner, "embed_brains", None)
    assert run(embed_config(world, tmp_path)) == 0


def _truncate(scan: Path) -> bytes:
    content = scan.read_bytes()
    scan.write_bytes(content[: len(content) // 2])
    return content


def test_one_corrupt_subject_is_reported_and_the_others_done(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(embed_config(copied, tmp_path / "whole", "sides=[brain]"))
    scan = next(copied.glob("cohort/derivatives/sub-004/func/*bold.nii.gz"))
    content = _truncate(scan)
    out = tmp_path / "out"
    for _ in range(2):
        assert run(embed_config(copied, out)) == 1
        said = capsys.readouterr().err
        assert "1 left out because of bad files" in said
        assert scan.name in said
    failed = pd.read_csv(out / "embedded" / "failed.tsv", sep="\t")
    assert set(failed["participant_id"]) == {"sub-004"}
    assert set(failed["modality"]) == {"brain"}
    frame, values = read_latents(out / "embedded" / "latents.parquet")
    brains = (frame["modality"] == "brain").to_numpy()
    whole, before = read_latents(tmp_path / "whole" / "embedded" / "latents.parquet")
    others = (whole["participant_id"] != "sub-004").to_numpy()
    assert list(frame.loc[brains, "participant_id"]) == list(whole.loc[others, "participant_id"])
    np.testing.assert_allclose(values[brains], before[others], atol=1e-6)
    assert "sub-004" in set(frame.loc[~brains, "participant_id"])
    scan.write_bytes(content)
    assert run(embed_config(copied, out)) == 0
    assert not (out / "embedded" / "failed.tsv").exists()
    assert len(read_latents(out / "embedded" / "latents.parquet")[0]) == len(frame) + 1


def test_on_error_stop_stops_at_once(copied: Path, tmp_path: Path) -> None:
    for scan in copied.glob("cohort/derivatives/sub-*/func/*bold.nii.gz"):
        _truncate(scan)
    with pytest.raises(InputError) as caught:
        run(embed_config(copied, tmp_path, "sides=[brain]", "on_error=stop"))
    assert len({problem.where for problem in caught.value.problems}) == 1
    assert not (tmp_path / "embedded" / "latents.parquet").exists()


def test_nobody_left_is_refused(copied: Path, tmp_path: Path) -> None:
    for scan in copied.glob("cohort/derivatives/sub-*/func/*bold.nii.gz"):
        _truncate(scan)
    with pytest.raises(InputError) as caught:
        run(embed_config(copied, tmp_path, "sides=[brain]"))
    assert len({problem.where for problem in caught.value.problems}) > 5


def test_another_build_is_refused(copied: Path, tmp_path: Path) -> None:
    fasta = copied / "cohort" / "reference.fa"
    head, bases = fasta.read_text().split("\n")[:2]
    swap = {"A": "C", "C": "G", "G": "T", "T": "A"}
    fasta.write_text(f"{head}\n{bases[:1510]}{swap[bases[1510]]}{bases[1511:]}\n")
    pysam.faidx(str(fasta))
    with pytest.raises(InputError) as caught:
        run(embed_config(copied, tmp_path, "sides=[gene]"))
    assert codes(caught) == {"other-reference"}


def test_other_scans_are_refused(copied: Path, tmp_path: Path) -> None:
    import nibabel as nib

    for scan in copied.glob("cohort/derivatives/sub-*/func/*bold.nii.gz"):
        image = nib.load(scan)
        data, affine = np.asarray(image.dataobj), image.affine
        slower = nib.Nifti1Image(data, affine)
        slower.header.set_zooms((3, 3, 3, 0.8))
        slower.header.set_xyzt_units("mm", "sec")
        scan.unlink()
        name = scan.name.replace("_desc", "_space-MNI152NLin6Asym_desc")
        nib.save(slower, scan.with_name(name))
    with pytest.raises(InputError) as caught:
        run(embed_config(copied, tmp_path, "sides=[brain]"))
    assert codes(caught) == {"other-tr"}


def test_a_space_the_bundle_knows_is_held_to() -> None:
    from multimodal.bold.bids import BoldRun
    from multimodal.latent.scans import scan_check

    def of(space: str, tr_s: float) -> BoldRun:
        name = Path(f"sub-1_task-rest_{space}desc-preproc_bold.nii.gz")
        return BoldRun("sub-1", "", "", name, None, None, tr_s)

    check = scan_check({"tr_s": [0.735], "spaces": ["MNI152NLin6Asym:res-2"]}, {})
    assert check(of("space-MNI152NLin6Asym_res-2_", 0.7352)) == ()
    found = check(of("space-MNI152NLin2009cAsym_", 2.0))
    assert [problem.code for problem in found] == ["other-space", "other-tr"]
    any_time = scan_check({"tr_s": [0.735], "spaces": []}, {"input": {"tr_s": 0.72}})
    assert any_time(of("", 2.0)) == ()
    assert scan_check(None, {})(of("", 2.0)) == ()


def test_who_is_no_sample_is_left_out(copied: Path, tmp_path: Path) -> None:
    table = copied / "cohort" / "participants.tsv"
    table.write_text(table.read_text().replace("\tG003\t", "\tnobody\t"))
    assert run(embed_config(copied, tmp_path, "sides=[gene]")) == 1
    failed = pd.read_csv(tmp_path / "embedded" / "failed.tsv", sep="\t")
    assert list(failed["code"]) == ["genotype-absent"]


def test_bad_settings_are_refused_together(world: Path, tmp_path: Path) -> None:
    words = ("on_error=ignore", "block_subjects=0", "sides=[face]")
    with pytest.raises(InputError) as caught:
        run(embed_config(world, tmp_path, *words))
    assert len(caught.value.problems) == 3
