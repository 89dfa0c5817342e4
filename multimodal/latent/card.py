"""The model card that travels with a bundle."""

from typing import Any


def _encoder_line(side: str, values: dict[str, Any]) -> str:
    spec = values.get("spec") or {}
    licence = spec.get("weight_license", "none")
    seen = ", ".join(spec.get("pretraining_cohorts", [])) or "none"
    return (
        f"- {side}: `{values['name']}`, weights {spec.get('weights_id', 'none')} "
        f"(licence {licence}; pretraining cohorts: {seen})"
    )


def _metric_lines(metrics: dict[str, Any]) -> list[str]:
    lines = []
    for gallery, result in (metrics.get("permutation") or {}).items():
        statistic, p = result.get("statistic"), result.get("p")
        if statistic is None or p is None:
            lines.append(f"- {gallery} gallery: not tested ({result.get('reason', 'too small')})")
        else:
            lines.append(
                f"- {gallery} gallery: mean rank percentile {statistic:.3f} (chance 0.5), "
                f"permutation p = {p:.4g}"
            )
    return lines or ["- not evaluated yet"]


def model_card(manifest: dict[str, Any]) -> str:
    """Return ``card.md`` for a bundle's manifest; it names no participant."""
    training = manifest.get("training", {})
    counts = [f"- {key.replace('_', ' ')}: {value}" for key, value in sorted(training.items())]
    regions = manifest["regions"]
    return "\n".join(
        [
            "# genebold bundle",
            "",
            "Two towers that map a person's genome and the same person's fMRI into one",
            "512-dimensional space of unit vectors.",
            "",
            "## What it takes",
            "",
            _encoder_line("genome", manifest["dna"]),
            _encoder_line("brain", manifest["brain"]),
            f"- regions: {len(regions)} "
            f"({', '.join(region['name'] for region in regions[:8])}"
            f"{', ...' if len(regions) > 8 else ''})",
            "",
            "## What it was trained on",
            "",
            *(counts or ["- not recorded"]),
            "",
            "## How it did on subjects it had not seen",
            "",
            *_metric_lines(manifest.get("metrics", {})),
            "",
            "Judge by retrieval within matched galleries (same sex, site and ancestry cluster):",
            "a raw gallery also rewards what ancestry or scanner give away.",
            "",
            "## Before you share or use it",
            "",
            "- Genome embeddings are identifiable personal data. Treat latents as you treat the",
            "  genotypes they come from, and share them under the same agreement.",
            "- It is for research on groups. It is no diagnostic and says nothing reliable about",
            "  one person.",
            "- It holds for cohorts prepared as `bundle.json` says: same regions and genome build,",
            "  same atlas or voxel size, space and repetition time.",
            "- Licences of encoder weights named above apply to what is made with them.",
            "",
        ]
    )
