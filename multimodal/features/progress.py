"""Progress bars for long work."""

from typing import Any


def progress_bar(title: str, total: int, unit: str, shown: bool) -> Any:
    """Return a tqdm bar on standard error; none where `shown` is False or no terminal is there."""
    from tqdm import tqdm

    hidden = None if shown else True
    return tqdm(total=total, desc=title, unit=unit, disable=hidden, dynamic_ncols=True)
