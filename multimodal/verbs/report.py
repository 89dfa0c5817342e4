"""``genebold report``: one self-contained HTML page about a run."""

from pathlib import Path

from omegaconf import DictConfig

from multimodal.align.processes import refuse_several
from multimodal.report.page import write_report
from multimodal.verbs.console import say


def run(config: DictConfig) -> int:
    """Write ``report.html`` into ``output_dir``."""
    refuse_several("report")
    say(f"report in {write_report(Path(config.output_dir))}")
    return 0
