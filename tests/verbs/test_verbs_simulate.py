"""simulate says what it wrote and what comes next, and leaves nothing else behind."""

from pathlib import Path

from command import SMALL, genebold


def test_simulate_says_what_comes_next_and_leaves_no_log(tmp_path: Path) -> None:
    words = [word for word in SMALL if word.startswith("cohort.")]
    done = genebold("simulate", "cohort.dir=DATA", *words, "cohort.subjects=20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20 participants" in done.stdout
    assert done.stdout.rstrip().endswith("next: genebold check cohort.dir=DATA")
    genebold("check", "cohort.dir=NOWHERE", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["DATA"]
