"""What a benchmark's table says about where it ran."""

import os
import platform
import subprocess
from pathlib import Path


def describe_machine() -> str:
    """Return processor, cores and Python version in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def describe_commit() -> str:
    """Return the commit checked out here, in words."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else "no commit"
