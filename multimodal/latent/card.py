"""The model card that travels with a bundle: written from the run, and naming nobody."""

from collections.abc import Iterator, Mapping
from typing import Any

from encoders.licences import forbids_derivatives, is_non_commercial
from multimodal.latent.delta import DELTA, changed_sides

_KEPT = ("method", "folds", "gallery_size", "retrieval", "permutation")
_PARTS = {"train": 0, "validation": 1, "test": 2}
_DIRECTIONS = {"gene_to_brain": "genome to brain", "brain_to_gene": "brain to genome"}
_CONTROLS = {
    "covariates_only": "covariates in place of the genome",
    "reference_genome": "the reference in place of everybody's genome",
}


def public_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a bundle keeps of ``metrics.json``: retrieval, tests and controls, no ids."""
    kept = {name: metrics[name] for name in _KEPT if name in metrics}
    controls = {
        name: {part: block[part] for part in ("retrieval", "permutation") if part in block}
        for name, block in (metrics.get("controls") or {}).items()
    }
    return {**kept, "controls": controls} if controls else kept


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return ``MODEL_CARD.md`` for a bundle's manifest.

    Parameters
    ----------
    manifest : mapping
        The content of ``bundle.json``. Only what is public of it is shown: counts, settings,
        metrics, licences.
    """
    sections = {
        "What it takes": _inputs(manifest),
        "What it was trained on": _training(manifest),
        "How it did on subjects it had not seen": _results(manifest.get("metrics") or {}),
        "Licences of the weights inside": _licences(manifest),
        "Intended use": _INTENDED,
        "Limits": _LIMITS,
        "Made with": _versions(manifest),
    }
    lines = [
        "# genebold bundle",
        "",
        "Two towers that map a person's genome and the same person's fMRI into one",
        "512-dimensional space of unit vectors.",
        "",
        "    genebold embed bundle=HERE cohort.dir=NEW",
    ]
    for title, content in sections.items():
        lines += ["", f"## {title}", "", *content]
    return "\n".join(lines) + "\n"


def _inputs(manifest: Mapping[str, Any]) -> Iterator[str]:
    for side, label in (("dna", "genome"), ("brain", "brain")):
        section = manifest[side]
        spec = section.get("spec") or {}
        seen = ", ".join(spec.get("pretraining_cohorts") or []) or "none"
        weights = spec.get("weights_id", "none")
        tuned = ", fine-tuned with the towers" if side in changed_sides(manifest) else ""
        told = f"`{section['name']}`, weights {weights}{tuned} (pretraining cohorts: {seen})"
        yield f"- {label}: {told}"
    regions = [region["name"] for region in manifest["regions"]]
    more = ", ..." if len(regions) > 8 else ""
    yield f"- regions: {len(regions)} ({', '.join(regions[:8])}{more})"
    windows = manifest["genome"].get("windows") or {}
    if windows:
        digest = windows["sha256"][:12]
        yield f"- reference over them: {windows['count']} windows, digest {digest}"
    atlas = manifest["bold"].get("atlas")
    if atlas:
        yield f"- atlas: {atlas['parcels']} parcels, digest {atlas['sha256'][:12]}"
    scans = manifest.get("scans") or {}
    if scans.get("tr_s"):
        yield f"- repetition time: {', '.join(f'{tr_s:g}' for tr_s in scans['tr_s'])} s"
    if scans.get("spaces"):
        yield f"- space: {', '.join(scans['spaces'])}"
    coding = manifest.get("covariates")
    if coding:
        yield "- covariates, regressed out: new subjects need them too (`bundle.json`, covariates)"


def _training(manifest: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in sorted((manifest.get("training") or {}).items()):
        shown = value
        if isinstance(value, Mapping):
            ordered = sorted(value, key=lambda name: (_PARTS.get(name, len(_PARTS)), name))
            shown = ", ".join(f"{name} {value[name]}" for name in ordered)
        lines.append(f"- {key.replace('_', ' ')}: {shown}")
    return lines or ["- not recorded"]


def _results(metrics: Mapping[str, Any]) -> list[str]:
    tests = _tests("aligned", metrics)
    for name, block in (metrics.get("controls") or {}).items():
        tests += _tests(_CONTROLS.get(name, name.replace("_", " ")), block)
    if not tests:
        return ["Not evaluated."]
    lines = [
        *_method(metrics),
        "| gene side | gallery | subjects | mean rank percentile (chance 0.5) | p |",
        "|---|---|---:|---:|---:|",
        *tests,
    ]
    rows = list(_retrieval(metrics))
    if rows:
        header = "| direction | gallery | percentile | recall@1 | by chance |"
        lines += ["", header, "|---|---|---:|---:|---:|", *rows, "", *_interval_note(metrics)]
    return [
        *lines,
        "",
        "Judge by matched galleries (same sex, site and ancestry cluster): a raw gallery also",
        "rewards what ancestry or scanner give away.",
    ]


def _method(metrics: Mapping[str, Any]) -> list[str]:
    if metrics.get("method") == "crossfit":
        how = f"{metrics.get('folds')}-fold, family-grouped cross-fitting: these numbers are of"
        return [how, "towers trained as these were, on parts of the cohort.", ""]
    return ["On the held-out split, with the towers of this bundle.", ""]


def _tests(label: str, block: Mapping[str, Any]) -> list[str]:
    lines = []
    for gallery, test in (block.get("permutation") or {}).items():
        subjects = test.get("n", "-")
        if test.get("statistic") is None or test.get("p") is None:
            why = test.get("reason") or "too small"
            lines.append(f"| {label} | {gallery} | {subjects} | not tested ({why}) | - |")
        else:
            cells = (label, gallery, subjects, f"{test['statistic']:.3f}", f"{test['p']:.4g}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _retrieval(metrics: Mapping[str, Any]) -> Iterator[str]:
    for gallery, ways in (metrics.get("retrieval") or {}).items():
        for way, label in _DIRECTIONS.items():
            block = ways.get(way) or {}
            if not block.get("n"):
                continue
            chance = (block.get("chance") or {}).get("recall@1")
            cells = [_with_interval(block, name) for name in ("mean_rank_percentile", "recall@1")]
            by_chance = "-" if chance is None else f"{chance:.3f}"
            yield f"| {label} | {gallery} | {' | '.join(cells)} | {by_chance} |"


def _with_interval(block: Mapping[str, Any], name: str) -> str:
    value, interval = block.get(name), (block.get("interval") or {}).get(name)
    if value is None:
        return "-"
    if not interval:
        return f"{value:.3f}"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _interval_note(metrics: Mapping[str, Any]) -> list[str]:
    levels = {
        block["interval_level"]
        for ways in metrics["retrieval"].values()
        for block in ways.values()
        if block.get("interval") and block.get("interval_level")
    }
    if not levels:
        return []
    level = " or ".join(f"{100 * value:g}%" for value in sorted(levels))
    return [f"In brackets: {level} bootstrap intervals over families."]


def _licences(manifest: Mapping[str, Any]) -> Iterator[str]:
    for side, label in (("dna", "genome"), ("brain", "brain")):
        section = manifest[side]
        licence = (section.get("spec") or {}).get("weight_license", "none")
        if licence == "none":
            yield f"- {label}, `{section['name']}`: no published weights"
            continue
        forbidden = []
        if is_non_commercial(licence):
            forbidden.append("no commercial use")
        if forbids_derivatives(licence):
            forbidden.append("changed weights may not be passed on")
        yield f"- {label}, `{section['name']}`: {'; '.join([licence, *forbidden])}"
    yield "- the towers: trained on the cohort above, under the terms of whoever holds its data"
    yield ""
    yield "Encoder weights are not in the bundle; it names them by digest. Their licences apply to"
    yield "what is made with them."
    if changed_sides(manifest):
        yield ""
        yield f"What fine-tuning changed in them is in `{DELTA}`: made from those weights,"
        yield "and to be passed on only where their licence allows derivatives."


def _versions(manifest: Mapping[str, Any]) -> list[str]:
    versions = manifest.get("versions") or {}
    return [f"- {name} {version}" for name, version in versions.items()] or ["- not recorded"]


_INTENDED = [
    "- Research on groups: how variation in the regions above goes with brain function, in",
    "  cohorts like the one it was trained on.",
    "- Comparing encoders, regions and cohorts by the same statistics, beside the same controls.",
]
_LIMITS = [
    "- No diagnostic: it says nothing reliable about one person, and is no means of identifying",
    "  anybody.",
    "- Genome embeddings are identifiable personal data. Treat latents as you treat the genotypes",
    "  they come from, and share them under the same agreement.",
    "- It holds for data prepared as above. `genebold embed` refuses another reference, atlas,",
    "  space or repetition time; it cannot see another scanner or another population.",
    "- What common variants tell of functional connectivity is little: expect identity retrieval",
    "  near chance in real cohorts, and a hit in a raw gallery to be ancestry or site first.",
]
