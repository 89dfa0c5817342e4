"""Charts as inline SVG: themed by the page's style sheet, with titles a screen reader can say."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH = 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 16, 38


def null_histogram(null: Mapping[str, Any], label: str, p: float | None) -> str:
    """Permutation null as bars, the observed statistic as a line.

    Parameters
    ----------
    null : mapping
        ``edges`` [b + 1], ``counts`` [b] and ``statistic``.
    label : str
        What is tested, for the alternative text.
    p : float or None
    """
    height = 210
    edges, counts, seen = null["edges"], null["counts"], float(null["statistic"])
    low, high = _padded(min(edges[0], seen, 0.5), max(edges[-1], seen, 0.5))
    x = _scale(low, high, _LEFT, WIDTH - _RIGHT)
    y = _scale(0, max([*counts, 1]) * 1.12, height - _BOTTOM, _TOP + 14)
    bars = []
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            extreme = " tail" if left >= seen else ""
            bars.append(
                f'<rect class="bar{extreme}" x="{x(left):.1f}" y="{y(count):.1f}" '
                f'width="{max(x(right) - x(left) - 0.6, 0.6):.1f}" '
                f'height="{height - _BOTTOM - y(count):.1f}"/>'
            )
    anchor = "end" if x(seen) > WIDTH * 0.7 else "start"
    nudge = -5 if anchor == "end" else 5
    parts = [
        *_x_axis(x, low, high, height, "mean rank percentile"),
        *bars,
        f'<line class="chance" x1="{x(0.5):.1f}" x2="{x(0.5):.1f}" y1="{_TOP + 14}" '
        f'y2="{height - _BOTTOM}"/>',
        f'<line class="seen" x1="{x(seen):.1f}" x2="{x(seen):.1f}" y1="{_TOP}" '
        f'y2="{height - _BOTTOM}"/>',
        f'<text class="seen-label" x="{x(seen) + nudge:.1f}" y="{_TOP + 9}" '
        f'text-anchor="{anchor}">observed {seen:.3f}</text>',
    ]
    tested = "" if p is None else f" One-sided p {p:.4g}."
    text = (
        f"Histogram of the statistic under {sum(counts):,} permutations, from {edges[0]:.3f} to "
        f"{edges[-1]:.3f}; observed {seen:.3f}, chance 0.5.{tested}"
    )
    return _svg(height, f"Null distribution, {label}", text, parts)


def line_chart(
    x_values: Sequence[float],
    series: Mapping[str, Sequence[float]],
    title: str,
    *,
    x_label: str,
    mark: float | None = None,
    mark_label: str = "",
    level: float | None = None,
) -> str:
    """Curves over a common axis, cells that are not finite left out.

    Parameters
    ----------
    x_values : sequence of float
    series : mapping of name to values
        At most three, drawn in the page's colours one to three.
    title, x_label : str
    mark : float, optional
        Place on the x axis to mark with a dashed line, and its label.
    level : float, optional
        Height to draw a dotted chance line at.
    """
    height, top = 236, _TOP + 20
    points = {
        name: [
            (a, b)
            for a, b in zip(x_values, values, strict=True)
            if math.isfinite(a) and math.isfinite(b)
        ]
        for name, values in series.items()
    }
    points = {name: found for name, found in points.items() if found}
    if not points:
        return ""
    every = [point for found in points.values() for point in found]
    low, high = _padded(
        min([b for _, b in every] + ([] if level is None else [level])),
        max([b for _, b in every] + ([] if level is None else [level])),
    )
    left, right = min(a for a, _ in every), max(a for a, _ in every)
    x = _scale(left, right if right > left else left + 1, _LEFT, WIDTH - _RIGHT)
    y = _scale(low, high, height - _BOTTOM, top)
    parts = [*_x_axis(x, left, right, height, x_label), *_y_axis(y, low, high)]
    if level is not None:
        parts.append(
            f'<line class="chance" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(level):.1f}" '
            f'y2="{y(level):.1f}"/>'
        )
    if mark is not None and left <= mark <= right:
        parts += [
            f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top}" '
            f'y2="{height - _BOTTOM}"/>',
            f'<text class="tick" x="{x(mark):.1f}" y="{top - 4}" '
            f'text-anchor="middle">{escape(mark_label)}</text>',
        ]
    said = []
    place = float(_LEFT)
    for number, (name, found) in enumerate(points.items(), start=1):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in found)
        parts.append(
            f'<polyline class="line c{number}" points="{path}"/>'
            if len(found) > 1
            else f'<circle class="dot c{number}" cx="{x(found[0][0]):.1f}" '
            f'cy="{y(found[0][1]):.1f}" r="3"/>'
        )
        parts += [
            f'<line class="line c{number}" x1="{place:.0f}" x2="{place + 16:.0f}" '
            f'y1="{_TOP - 4}" y2="{_TOP - 4}"/>',
            f'<text class="tick" x="{place + 21:.0f}" y="{_TOP}">{escape(name)}</text>',
        ]
        place += 36 + 6.4 * len(name)
        said.append(f"{name} goes from {found[0][1]:.3g} to {found[-1][1]:.3g}")
    return _svg(height, title, "; ".join(said) + ".", parts)


def forest(rows: Sequence[tuple[str, float, Sequence[float], bool]], title: str) -> str:
    """Mean rank percentiles with intervals, one a line, around the chance of 0.5.

    Parameters
    ----------
    rows : sequence of (label, value, (low, high), control)
        Controls are drawn muted.
    title : str
    """
    step, name_width, width = 26, 290, 780
    height = _TOP + step * len(rows) + _BOTTOM
    low = min([0.5, *(interval[0] for _, _, interval, _ in rows)])
    high = max([0.5, *(interval[1] for _, _, interval, _ in rows)])
    low, high = _padded(low, high)
    x = _scale(low, high, name_width, width - 60)
    parts = _x_axis(
        x, low, high, height, "mean rank percentile", start=name_width, width=width - 60
    )
    parts.append(
        f'<line class="chance" x1="{x(0.5):.1f}" x2="{x(0.5):.1f}" y1="{_TOP}" '
        f'y2="{height - _BOTTOM}"/>'
    )
    said = []
    for number, (name, value, interval, control) in enumerate(rows):
        middle = _TOP + step * (number + 0.5)
        kind = "c3" if control else "c1"
        parts += [
            f'<text class="name" x="{name_width - 14}" y="{middle + 4:.1f}" '
            f'text-anchor="end">{escape(name)}</text>',
            f'<line class="line {kind}" x1="{x(interval[0]):.1f}" x2="{x(interval[1]):.1f}" '
            f'y1="{middle:.1f}" y2="{middle:.1f}"/>',
            f'<circle class="dot {kind}" cx="{x(value):.1f}" cy="{middle:.1f}" r="4.5"/>',
            f'<text class="tick" x="{width - 50}" y="{middle + 4:.1f}">{value:.3f}</text>',
        ]
        said.append(f"{name}: {value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})")
    return _svg(height, title, "; ".join(said) + ". Chance is 0.5.", parts, width=width)


def bars(
    values: Mapping[str, float],
    title: str,
    *,
    unit: str = "",
    instead: Mapping[str, str] | None = None,
) -> str:
    """Horizontal bars with their values, or with the words `instead` has for some."""
    instead = instead or {}
    step, name_width, width = 24, 130, WIDTH
    height = 8 + step * len(values)
    x = _scale(0, max([*values.values(), 1e-9]), name_width, width - 70)
    parts = []
    for number, (name, value) in enumerate(values.items()):
        top = 4 + step * number
        number_shown = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
        shown = escape(instead.get(name, f"{number_shown}{unit}"))
        parts += [
            f'<text class="name" x="{name_width - 10}" y="{top + 15}" text-anchor="end">'
            f"{escape(_short(name, 18))}</text>",
            f'<rect class="bar" x="{name_width}" y="{top + 4}" '
            f'width="{max(x(value) - name_width, 1):.1f}" height="{step - 9}" rx="2"/>',
            f'<text class="tick" x="{x(value) + 6:.1f}" y="{top + 15}">{shown}</text>',
        ]
    said = "; ".join(
        f"{name} {instead.get(name, f'{value:,.4g}{unit}')}" for name, value in values.items()
    )
    return _svg(height, title, said + ".", parts, width=width)


def _svg(height: float, title: str, text: str, parts: Sequence[str], width: int = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}. '
        f'{escape(text)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


class _scale:  # noqa: N801 - used as a function
    """Linear map from data to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.factor = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.02
    return low - margin, high + margin


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two bounds."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _x_axis(
    x: _scale,
    low: float,
    high: float,
    height: float,
    label: str,
    *,
    start: float = _LEFT,
    width: float = WIDTH - _RIGHT,
) -> list[str]:
    base = height - _BOTTOM
    parts = [f'<line class="axis" x1="{start}" x2="{width}" y1="{base}" y2="{base}"/>']
    parts += [
        f'<text class="tick" x="{x(tick):.1f}" y="{base + 14}" text-anchor="middle">{tick:g}</text>'
        for tick in map(_tidy, _ticks(low, high))
    ]
    parts.append(
        f'<text class="axis-label" x="{(start + width) / 2:.0f}" y="{base + 31}" '
        f'text-anchor="middle">{escape(label)}</text>'
    )
    return parts


def _y_axis(y: _scale, low: float, high: float) -> list[str]:
    parts = []
    for tick in map(_tidy, _ticks(low, high, 4)):
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/>',
            f'<text class="tick" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:g}</text>',
        ]
    return parts


def _tidy(value: float) -> float:
    return round(value, 10)


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
