"""What stands at the top of the page: simulated people and networks that never learnt."""

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import metrics, record

from multimodal.report.inputs import ReportInputs
from multimodal.report.page import render
from multimodal.report.provenance import random_seed, simulation_of


def simulated(folder: Path, genotypes: str | dict[str, str] = "simulated") -> dict[str, str]:
    values = {"options": {"world": "signal", "seed": 7}, "source": {"genotypes": genotypes}}
    (folder / "simulation.json").write_text(json.dumps(values))
    return {"participants": str(folder / "participants.tsv"), "bold": str(folder / "derivatives")}


def head(record: dict[str, Any], found: dict[str, Any] | None = None) -> str:
    html = render(ReportInputs({} if found is None else found, record, {}))
    return html[: html.index("How to read this")]


def test_a_simulated_cohort_is_known_by_what_the_simulator_leaves(tmp_path: Path) -> None:
    paths = simulated(tmp_path)
    assert simulation_of(paths) == {"world": "signal", "seed": 7, "genotypes": "simulated"}
    assert "The cohort is simulated (world signal, seed 7)." in head({**record(), "cohort": paths})
    given = simulated(tmp_path, {"sha256": "ab"})
    said = head({**record(), "cohort": given})
    assert "brains are simulated (world signal, seed 7) on genotypes that were given" in said


@pytest.mark.parametrize("text", [None, "{half", "[]", '{"options": 3}', '{"physics": "fluid"}'])
def test_people_are_not_called_simulated(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "simulation.json").write_text(text)
    paths = {"participants": tmp_path / "participants.tsv", "genotypes": None}
    assert simulation_of(paths) is None
    assert "is simulated" not in head({**record(), "cohort": {"participants": None}})


def test_what_was_recorded_outlives_the_cohort(tmp_path: Path) -> None:
    recorded = {"simulation": {"world": "null", "seed": 3, "genotypes": "simulated"}}
    assert "The cohort is simulated (world null, seed 3)." in head({**record(), **recorded})
    people = {**metrics(), "simulation": None}
    assert "simulated" not in head({**record(), **recorded}, people)


@pytest.mark.parametrize("side", ["dna", "brain"])
def test_random_weights_are_said_first_and_beside_the_citation(side: str) -> None:
    spec = {**record()["encoders"]["dna"], "weights_id": "random(seed=4)"}
    told = {**record(), "encoders": {side: spec}}
    assert "The encoder weights are random" in head(told)
    html = render(ReportInputs({}, told, {}))
    assert "random, seed 4" in html
    assert "architecture only: A paper" in html
    assert "random(seed=4)" not in html
    assert "weights are random" not in head(record())


def test_only_random_weights_have_a_seed() -> None:
    assert random_seed("random(seed=12)") == "12"
    assert random_seed("random(unknown)") == "not recorded"
    assert random_seed("none") is None
    assert random_seed("org/randomised") is None
