"""The report: what it says, what it leaves out, what it never shows."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_runs import SECRET, metrics, record, write_run

from encoders.errors import InputError
from multimodal.report.charts import bars, line_chart, null_histogram
from multimodal.report.inputs import ReportInputs
from multimodal.report.page import render, write_report
from multimodal.report.verdict import judge, show_p

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Balanced(HTMLParser):
    """Fails on tags that are closed in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.labels: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "svg":
            self.labels.append(dict(attrs).get("aria-label") or "")

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        """Self-closed SVG elements need no end."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_page_is_whole_well_formed_and_described(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path))
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert len(parser.labels) >= 8
    assert all(len(label) > 20 for label in parser.labels)
    for wanted in ("Retrieval against its null", "recall@10", "MRR", "gene → brain", "Limits"):
        assert wanted in html
    assert [file.name for file in tmp_path.glob(".tmp*")] == []


def test_page_loads_nothing_and_names_nobody(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path))
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:|#)", html)
    assert "@import" not in html
    assert "url(" not in html
    assert SECRET not in html
    assert "secret" not in html.lower().replace("sub-secret", "")
    assert "model.safetensors" in html
    assert "<b>north</b>" not in html
    assert "&lt;b&gt;north" in html


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "history.csv"])
def test_a_missing_file_is_named_and_the_rest_shown(tmp_path: Path, name: str) -> None:
    write_run(tmp_path)
    (tmp_path / name).unlink()
    html = page_of(tmp_path)
    assert f"left out of this page: {name}" in html
    absent = {"metrics.json": "No evaluation yet", "run.json": "were not recorded"}
    assert absent.get(name, "No training history was recorded") in html


def test_an_empty_folder_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="align first"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{half")
    with pytest.raises(InputError, match=r"metrics\.json"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(InputError, match="object"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "history.csv").write_text("epoch,val_loss\n0,2.5\n1,bad\n")
    with pytest.raises(InputError, match=r"history\.csv line 3: val_loss is 'bad'"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_metrics_before_any_evaluation(tmp_path: Path) -> None:
    found = metrics()
    html = page_of(
        write_run(tmp_path, metrics={"cohort": found["cohort"], "stages": {"align": 1.0}})
    )
    assert "Nothing has been tested yet" in html


def test_matching_that_is_impossible_is_explained(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path, metrics=metrics(strata=40)))
    assert "candidates could not be matched" in html
    assert "Not tested: all" in html


def keys_in(values: dict[str, Any]) -> set[str]:
    inner = [keys_in(value) for value in values.values() if isinstance(value, dict)]
    return set(values).union(*inner)


def changed(values: dict[str, Any], key: str, *, null: bool) -> dict[str, Any]:
    """Leave out a key wherever it stands, or set it to null there."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name != key:
            found[name] = changed(value, key, null=null) if isinstance(value, dict) else value
        elif null:
            found[name] = None
    return found


@pytest.mark.parametrize("null", [False, True], ids=["missing", "null"])
def test_whatever_is_missing_in_the_metrics_leaves_a_page(null: bool) -> None:
    whole = metrics()
    inputs = {"record": record(), "history": {"epoch": [0.0, 1.0], "train_loss": [2.0, 1.0]}}
    for key in sorted(keys_in(whole)):
        html = render(ReportInputs(metrics=changed(whole, key, null=null), **inputs))
        assert "</html>" in html, key
        for leak in ("None", "Undefined", ">nan"):
            assert leak not in html.replace("None</dd>", ""), key


def outcome(raw_p: float, matched_p: float, control_p: float | None = None) -> dict:
    def test(p: float) -> dict:
        # As far above chance as its p says.
        return {"p": p, "statistic": 0.6 if p <= 0.05 else 0.52, "n": 100}

    found: dict = {"permutation": {"raw": test(raw_p), "matched": test(matched_p)}}
    if control_p is not None:
        found["controls"] = {"covariates_only": {"permutation": {"matched": test(control_p)}}}
    return found


@pytest.mark.parametrize(
    ("values", "tone", "words"),
    [
        ((0.001, 0.001, 0.6), "found", "better than chance, among people alike"),
        ((0.001, 0.001), "found", "better than chance, among people alike"),
        ((0.001, 0.001, 0.01), "warned", "covariates alone do as well"),
        ((0.001, 0.4, 0.6), "warned", "only until candidates are matched"),
        ((0.4, 0.4, 0.6), "none", "No evidence"),
    ],
)
def test_verdicts(values: tuple, tone: str, words: str) -> None:
    verdict = judge(outcome(*values))
    assert verdict.tone == tone
    assert words in verdict.headline


def test_fewer_people_are_no_confound() -> None:
    """Matched, as far above chance as before, but too few to be sure of it."""
    found = outcome(0.011, 0.068)
    found["permutation"]["raw"]["statistic"] = 0.647
    found["permutation"]["matched"] |= {"statistic": 0.637, "n": 20}
    verdict = judge(found)
    assert verdict.tone == "open"
    assert "too few to tell" in verdict.headline
    found["permutation"]["matched"]["statistic"] = 0.56
    assert judge(found).tone == "warned"
    del found["permutation"]["matched"]["statistic"]
    assert judge(found).tone == "warned"


def test_verdict_of_a_real_evaluation() -> None:
    assert judge(metrics(signal=0.8)).tone == "found"
    assert judge(metrics(signal=0.8, control=1.0)).tone == "warned"
    assert judge({}).tone == "open"


STRATA = ["sex", "site", "ancestry"]


def test_the_headline_names_what_was_matched() -> None:
    found = {**outcome(0.001, 0.001), "settings": {"strata": STRATA}}
    assert "among people of the same sex, site and ancestry." in judge(found).headline
    found["settings"] = {"strata": ["handedness"]}
    assert "among people of the same handedness." in judge(found).headline
    confounded = {**outcome(0.001, 0.4), "settings": {"strata": ["sex", "coil"]}}
    assert judge(confounded).headline.endswith("may be sex or coil.")


@pytest.mark.parametrize(("raw_p", "tone"), [(0.001, "warned"), (0.4, "none")])
def test_empty_strata_are_no_matching(raw_p: float, tone: str) -> None:
    verdict = judge({**outcome(raw_p, raw_p), "settings": {"strata": []}})
    assert verdict.tone == tone
    assert "among people" not in verdict.headline
    assert "match" in verdict.headline


def test_a_page_without_strata_has_no_matched_results(tmp_path: Path) -> None:
    found = {**metrics(signal=0.8, strata=1), "settings": {"strata": []}}
    html = page_of(write_run(tmp_path, metrics=found))
    assert "No covariates were matched" in html
    assert html.count("Not tested: evaluation.strata is empty") == 2
    assert "<caption>Matched candidates" not in html
    assert "Null distribution, genome, matched" not in html
    assert "genome, matched, gene" not in html


def test_strata_of_an_alignment_stand_in_until_it_is_evaluated(tmp_path: Path) -> None:
    html = render(
        ReportInputs(metrics(signal=0.8), {**record(), "evaluation": {"strata": STRATA}}, {})
    )
    assert "of the same sex, site and ancestry" in html


def test_the_page_shows_the_settings_of_the_evaluation_it_shows() -> None:
    aligned = {**record(), "evaluation": {"strata": STRATA, "permutations": 9998}}
    found = {**metrics(), "settings": {"strata": ["sex", "ancestry"], "permutations": 199}}
    html = render(ReportInputs(found, aligned, {}))
    assert "<dt>permutations</dt><dd>199</dd>" in html
    assert "<dt>strata</dt><dd>sex, ancestry</dd>" in html
    assert "9998" not in html


def test_galleries_that_are_not_there_are_none(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path, metrics=metrics(strata=40)))
    assert "0 to 0" not in html
    assert "none: all" in html


def test_a_recall_that_cannot_miss_is_left_out(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path, metrics=metrics(strata=8)))
    raw, matched = html[html.index("<caption>All") :].split("<caption>Matched")
    matched = matched[: matched.index("</table>")]
    assert 'scope="row">recall@10' in raw
    assert 'scope="row">recall@1<' in matched
    assert 'scope="row">recall@5' not in matched
    assert 'scope="row">recall@10' not in matched
    assert "recall@5 and recall@10 are left out: no gallery has more than 5 candidates" in html


def test_stages_that_were_resumed_add_nothing(tmp_path: Path) -> None:
    found = {**metrics(), "stages": {"encode dna": 0.01, "align": 3.0}}
    html = page_of(write_run(tmp_path, metrics=found))
    assert "encode dna resumed; align 3 s" in html
    assert "3 s in all, without what was resumed" in html
    assert "without what was resumed" not in page_of(write_run(tmp_path / "fresh"))


@pytest.mark.parametrize(
    ("best", "start", "words"),
    [
        (2, "cca", "raised the validation percentile of the CCA start: 0.500 at the start, 0.600"),
        (1, "random", "lowered the validation percentile of the random start"),
        (0, "cca", "added nothing to the CCA start: the kept epoch is the start itself"),
        (3, "cca", "added nothing to the validation percentile of the CCA start: 0.500"),
    ],
)
def test_the_page_says_what_training_added(best: int, start: str, words: str) -> None:
    told = {**record(), "best_epoch": best, "align": {"start": start}}
    history = {"epoch": [0.0, 1.0, 2.0, 3.0], "val_percentile": [0.5, 0.4, 0.6, 0.50001]}
    assert words in render(ReportInputs({}, told, history))
    nothing = {"epoch": [0.0, 1.0, 2.0], "train_loss": [2.0, 1.0, 0.5]}
    assert "Contrastive training" not in render(ReportInputs({}, told, nothing))


@pytest.mark.parametrize("kept", [0.0, 2.0, 4.0])
def test_the_label_of_the_kept_epoch_stands_clear_of_curves_and_legend(kept: float) -> None:
    chart = line_chart(
        [0.0, 2.0, 4.0], {"loss": [3.0, 1.0, 3.0]}, "loss", x_label="epoch", mark=kept,
        mark_label="kept",
    )  # fmt: skip
    label = re.search(r'y="([\d.]+)" text-anchor="middle">kept', chart)
    legend = re.search(r'y="([\d.]+)">loss', chart)
    points = re.search(r'<polyline[^>]*points="([^"]*)"', chart)
    assert label
    assert legend
    assert points
    highest = min(float(point.split(",")[1]) for point in points[1].split())
    assert float(legend[1]) + 11.5 <= float(label[1]) <= highest - 4


def test_p_values_keep_the_digits_that_matter() -> None:
    assert [show_p(p) for p in (0.0001, 0.0123, 0.0499, 0.34567, 1.0)] == [
        "0.0001", "0.012", "0.050", "0.35", "1.00",
    ]  # fmt: skip


def test_charts_take_what_is_degenerate() -> None:
    flat = {"edges": [0.0, 0.5, 1.0], "counts": [0, 99], "statistic": 0.5}
    assert "observed 0.500" in null_histogram(flat, "control", 1.0)
    assert line_chart([0.0], {"loss": [float("nan")]}, "loss", x_label="epoch") == ""
    assert "<circle" in line_chart([0.0], {"loss": [1.0]}, "loss", x_label="epoch")
    assert "<svg" in line_chart([0.0, 1.0], {"loss": [1.0, 1.0]}, "loss", x_label="epoch")
    assert "0 s" in bars({"nothing": 0.0}, "Seconds", unit=" s")
