"""The page in a real browser: it renders, logs no errors, asks for nothing.

The page's content policy forbids every request, so one that was tried is an error in the log.
"""

import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from report_runs import record, write_run

from multimodal.report.page import write_report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason=f"no browser at {CHROMIUM}: install chromium"
)


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_page_renders_without_errors_or_requests(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run"))
    seen = browse(page, tmp_path / "profile", "--dump-dom")
    assert "Retrieval against its null" in seen.stdout
    assert seen.stdout.count("<svg") >= 8
    assert "CONSOLE" not in seen.stderr
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", seen.stdout)


def test_a_page_that_asked_for_something_would_be_caught(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run"))
    html = page.read_text(encoding="utf-8")
    page.write_text(html.replace("</main>", '<img src="https://example.org/x.png"></main>'))
    assert "CONSOLE" in browse(page, tmp_path / "profile", "--dump-dom").stderr


MEASURE = """<script>
const cut = [...document.querySelectorAll(".scroll, html")].filter(
  e => e.scrollWidth > e.clientWidth);
const scales = [...document.querySelectorAll("svg")].map(
  e => e.getBoundingClientRect().width / e.viewBox.baseVal.width);
document.title = `cut ${cut.length} scales ${Math.min(...scales)} ${Math.max(...scales)}`;
</script></main>"""


def test_nothing_is_cut_at_1100_pixels_and_charts_write_alike(tmp_path: Path) -> None:
    long = record()
    long["encoders"]["dna"]["paper"] = "A citation of very many words, " * 12
    long["encoders"]["dna"]["weights_id"] = "somebody/" + "a-very-long-name-" * 8
    long["encoders"]["dna"]["pretraining_cohorts"] = ["UK Biobank", "Human Connectome Project"] * 3
    folder = write_run(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps(long))
    page = write_report(folder)
    html = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    page.write_text(html.replace("</main>", MEASURE), encoding="utf-8")
    seen = browse(page, tmp_path / "profile", "--dump-dom", "--window-size=1100,2400").stdout
    found = re.search(r"<title>cut (\d+) scales ([\d.]+) ([\d.]+)</title>", seen)
    assert found is not None
    assert found[1] == "0"
    assert float(found[3]) / float(found[2]) < 1.15


def test_picture_is_not_blank(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run"))
    picture = tmp_path / "page.png"
    browse(page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1100,2400")
    head = picture.read_bytes()
    assert struct.unpack(">II", head[16:24]) == (1100, 2400)
    # A blank page of this size compresses to about 10 kB.
    assert len(head) > 60_000
