"""Writes a trace as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections import Counter
from html import escape
from importlib.resources import files
from string import Template

import cv2

from streamdet.trace.report import Datum, Figure, Region, Rgb, Stage, Survivor, Trace

_JPEG_QUALITY = 85
_SUPPRESSED_SHOWN = 6
_BYTE_UNITS = ("bytes", "KiB", "MiB", "GiB")


def render_page(trace: Trace) -> str:
    """The whole page."""
    template = Template(files("streamdet.trace").joinpath("page.html").read_text("utf-8"))
    slowest = max(stage.milliseconds for stage in trace.stages)
    last = trace.stages[-1].figures[-1]
    return template.substitute(
        summary=_summary(trace),
        result=_figure(Figure(last.picture, "What was found.")),
        way="".join(_step(i, stage, slowest) for i, stage in enumerate(trace.stages, 1)),
        stages="".join(_section(i, stage) for i, stage in enumerate(trace.stages, 1)),
    )


def human_bytes(count: int) -> str:
    """A number of bytes for people: "3.4 MiB"."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_BYTE_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_BYTE_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_BYTE_UNITS[unit]}"


def human_shape(shape: tuple[int, ...]) -> str:
    """A shape for people: "1 x 3 x 320 x 448"."""
    return " x ".join(map(str, shape))


def _summary(trace: Trace) -> str:
    counts = Counter(d.label for d in trace.detections)
    found = ", ".join(f"{count} x {escape(label)}" for label, count in counts.most_common()) or "nothing"
    return (
        f"<b>{found}</b> above a score of {trace.score_threshold:.0%} in <code>{escape(trace.source)}</code> "
        f"({trace.width}x{trace.height} pixels), in {trace.milliseconds:.0f} ms on {escape(trace.device)} "
        f"by <code>{escape(trace.architecture)}</code>."
    )


def _step(number: int, stage: Stage, slowest: float) -> str:
    width = 100 * stage.milliseconds / max(slowest, 1e-9)
    return (
        f'<li><a href="#{stage.name}"><span class="soft">{number}</span><code>{stage.name}</code>'
        f'<i style="width:{width:.1f}%"></i><b>{stage.milliseconds:.2f} ms</b></a></li>'
    )


def _section(number: int, stage: Stage) -> str:
    return (
        f'<section id="{stage.name}"><div class="head"><span class="number">{number}</span><div>'
        f"<h2>{escape(stage.title)}</h2><code>{stage.name} &middot; {stage.milliseconds:.2f} ms</code></div></div>"
        f"<p>{escape(stage.explanation)}</p>{_figures(stage.figures)}{_regions(stage.regions)}"
        f"{_survivors(stage.survivors)}{_data_table(stage)}</section>"
    )


def _figures(figures: tuple[Figure, ...]) -> str:
    small = "".join(_figure(figure) for figure in figures if figure.small)
    return (f'<div class="grid">{small}</div>' if small else "") + "".join(
        _figure(figure) for figure in figures if not figure.small
    )


def _figure(figure: Figure) -> str:
    scale = ""
    if figure.scale is not None:
        low, high = figure.scale
        scale = f'<div class="scale">{escape(low)}<i></i>{escape(high)}</div>'
    caption = escape(figure.caption)
    return (
        f'<figure><img src="{_data_uri(figure.picture)}" alt="{caption}">{scale}'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _regions(regions: tuple[Region, ...]) -> str:
    if not regions:
        return ""
    cards = []
    for region in regions:
        rows = "".join(
            f'<div class="score"><i style="width:{100 * score:.1f}%"></i><span>{escape(label)}</span>'
            f"<span>{score:.1%}</span></div>"
            for label, score in region.scores
        )
        image = f'<img src="{_data_uri(region.crop)}" alt="what the proposal shows">'
        cards.append(f'<div class="region">{image}<div>objectness {region.objectness:.1%}{rows}</div></div>')
    caption = f"The {len(regions)} likeliest proposals and the highest scores that each one got."
    return f'<div class="regions">{"".join(cards)}</div><p class="soft">{caption}</p>'


def _survivors(survivors: tuple[Survivor, ...]) -> str:
    if not survivors:
        return ""
    rows = []
    for survivor in survivors:
        gone = survivor.suppressed_scores
        shown = ", ".join(f"{score:.1%}" for score in gone[:_SUPPRESSED_SHOWN])
        more = f" and {len(gone) - _SUPPRESSED_SHOWN} more" if len(gone) > _SUPPRESSED_SHOWN else ""
        cells = f"<td>{escape(survivor.label)}</td><td class=n>{survivor.score:.1%}</td><td>{shown or '-'}{more}</td>"
        rows.append(f"<tr>{cells}</tr>")
    head = "<tr><th>kept</th><th class=n>score</th><th>scores of the boxes that gave way to it</th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _data_table(stage: Stage) -> str:
    rows = "".join(_datum("in", datum) for datum in stage.inputs)
    rows += "".join(_datum("out", datum) for datum in stage.outputs)
    head = "<tr><th></th><th>what</th><th>shape</th><th>dtype</th><th class=n>size</th></tr>"
    return f'<details open><summary>In and out</summary><div class="scroll"><table>{head}{rows}</table></div></details>'


def _datum(direction: str, datum: Datum) -> str:
    return (
        f"<tr><td>{direction}</td><td>{escape(datum.name)}</td>"
        f"<td>{human_shape(datum.shape)}<br><small>{escape(datum.axes)}</small></td>"
        f"<td>{datum.dtype}</td><td class=n>{human_bytes(datum.bytes)}</td></tr>"
    )


def _data_uri(picture: Rgb) -> str:
    """The picture within the page: as PNG where that is smaller than JPEG."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
    png = cv2.imencode(".png", bgr)[1].tobytes()
    kind, content = ("png", png) if len(png) < len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
