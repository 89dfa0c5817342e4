"""The GPU benchmark runs, as far as can be seen without a GPU."""

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from encoders import load_encoder

FOLDER = Path(gpu.__file__).parent


def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "no GPU here" in capsys.readouterr().out


def test_its_code_runs(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = sorted((FOLDER / "results").iterdir())
    assert gpu.main(["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for words in ("scan forward, bfloat16", "training step", "pooled features", "met"):
        assert words in out
    assert sorted((FOLDER / "results").iterdir()) == before


def test_a_backend_that_differs_stops_it(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(gpu, "OUTPUT_BOUND", 0.0)
    assert gpu.main(["--device", "cpu"]) == 1
    assert "differs from the definition" in capsys.readouterr().out


def test_product_flops() -> None:
    network = load_encoder("caduceus_ps", config={"d_model": 8, "n_layer": 2}).backbone
    outer, inner = 32 * 8 + 8 * 16, 33 * 16 + 16
    assert gpu.product_flops(network) == 2 * 2 * 2 * (outer + 2 * inner)


def test_the_choice_of_a_backend_is_taken_back(monkeypatch) -> None:
    monkeypatch.setenv(gpu.BACKEND_VARIABLE, "torch")
    with pytest.raises(ZeroDivisionError), gpu.through("reference"):
        raise ZeroDivisionError
    assert gpu.os.environ[gpu.BACKEND_VARIABLE] == "torch"


def test_verdicts() -> None:
    what = "pooled features, 1 x 8 bases, bfloat16"
    rates = {f"{what} | torch": 1.0, f"{what} | triton": 2.0, "x, float32 | triton": 1.0}
    assert gpu.verdicts(rates, "triton") == [f"- {what}: 2.0 times torch (at least 1.5: met)"]
