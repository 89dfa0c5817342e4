"""A run folder with believable results, for the report's tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from multimodal.evaluate.summary import Evaluated, EvaluateOptions, evaluate_latents

SECRET = "sub-SECRET"


def metrics(signal: float = 0.6, control: float = 0.0, strata: int = 2) -> dict[str, Any]:
    """Metrics of simulated latents, with all that the verbs add."""
    rng = np.random.default_rng(0)
    rows = np.arange(120)
    gene, noise, other = (rng.standard_normal((120, 8)) for _ in range(3))
    brain = signal * gene + noise
    who = Evaluated(
        [f"{SECRET}{row:03d}" for row in rows],
        rows % 3,
        rows,
        np.array([f"s{row // 3 % strata}" for row in rows]),
    )
    found = evaluate_latents(
        gene,
        brain,
        who,
        controls={"covariates_only": (control * brain + other, brain)},
        options=EvaluateOptions(permutations=199, bootstrap_replicates=100),
    )
    found["cohort"] = {
        "participants": 120,
        "families": 4,
        "runs": 130,
        "mean_fd_mm": 0.14,
        "split": {"train": 90, "validation": 10, "test": 20},
        "sex": {"F": 61, "M": 59},
        "site": {"<b>north</b>": 120},
        "age_years": {"mean": 40.0, "sd": 9.0},
    }
    found["stages"] = {"encode genomes": 12.5, "align": 3.0}
    return found


def record() -> dict[str, Any]:
    """What `align` leaves in run.json."""
    return {
        "versions": {"python": "3.11.9", "genebold": "0.1.0"},
        "identity": "0123456789abcdef",
        "best_epoch": 2,
        "cohort": {"participants": "/data/ukb-secret/participants.tsv"},
        "stores": {"dna": "/data/ukb-secret/features"},
        "dna": {"name": "caduceus_ps", "weights": "/home/secret-person/model.safetensors"},
        "align": {"epochs": 3, "towers": {"merge": "mean"}},
        "split": {"file": None, "kinship_threshold": 0.0442},
        "encoders": {
            "dna": {
                "name": "caduceus_ps",
                "weights_id": "/home/secret-person/model.safetensors",
                "weights_sha256": "ab" * 32,
                "parameters": 48_320,
                "feature_dim": 32,
                "weight_license": "Apache-2.0",
                "pretraining_cohorts": ["HCP"],
                "paper": "A paper",
            }
        },
    }


def write_run(folder: Path, **changes: Any) -> Path:
    """Write metrics.json, run.json and history.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(changes.get("metrics") or metrics()))
    (folder / "run.json").write_text(json.dumps(record()))
    (folder / "history.csv").write_text(
        "epoch,train_loss,val_loss,val_percentile\n0,,3.1,0.5\n1,2.0,3.0,0.55\n2,1.5,2.9,0.6\n"
    )
    return folder
