"""Progress bars for long work."""

from typing import Any


def progress_bar(title: str, total: int, unit: str, shown: bool) -> Any:
    """Return a tqdm bar on standard error; nothing is drawn where `shown` is False."""
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=unit, disable=not shown, dynamic_ncols=True)
