"""The output of a run: a table that grows epoch by epoch, and a progress bar within the epoch.

If the output is not a terminal, plain lines are printed instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from streamdet.config.values import in_words
from streamdet.training.metrics import Metrics
from streamdet.training.run import BEST, LAST, EpochResult, best_of, start_of
from streamdet.training.train import Listener, Run

_COLUMNS = (
    "epoch", "loss", "objectness", "rpn box", "classifier", "box", "mAP", "mAP@.50", "rate", "images/s", "time left",
)  # fmt: skip
# What a terminal has no room for is in results.csv; the first of these is left out first.
_LEFT_OUT = ("rate", "objectness", "rpn box", "classifier", "box", "images/s", "time left", "mAP@.50", "loss", "mAP")
_ANY_WIDTH = 1000
_PLAIN_LINE_SECONDS = 30.0
_SMOOTHING = 0.9
_LINES_AROUND_ROWS = 7


@contextmanager
def checking_pictures(annotations: Path) -> Iterator[Callable[[int, int], None]]:
    """Shows how far the check of a data set's pictures is; yields what takes (done, total)."""
    console = Console(stderr=True)
    with bar(f"checking {annotations.name}", console) as on_progress:
        yield on_progress


@contextmanager
def bar(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere; yields what takes (done, total)."""
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal, transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _share(value: float | None) -> str:
    return _number(None if value is None or value < 0 else value, ".3f")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(shown: Sequence[str], rows: Sequence[tuple[list[str], str]]) -> Table:
    """Some of the columns; each row has the cells of all of them, and a style."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for cells, style in rows:
        table.add_row(*(cell for name, cell in zip(_COLUMNS, cells, strict=True) if name in shown), style=style)
    return table


class TrainingProgress(Listener):
    """Shows a run, from its first step to its summary.

    Args:
        run: what is shown.
        processes: how many train together, for the first line.
        console: where to; standard output when None.
    """

    def __init__(self, run: Run, processes: int = 1, console: Console | None = None) -> None:
        self._run = run
        self._processes = processes
        self._console = console or Console()
        self._images_per_second = 0.0
        self._evaluation_seconds = 0.0
        self._epoch_stepped_at = time.monotonic()
        self._said_at = 0.0
        self._rows: list[tuple[list[str], str]] = []
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=32), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="cyan"), console=self._console,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=run.steps_per_epoch, note="")
        self._live = Live(self._screen(), console=self._console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._introduce()
        for result in self._run.results:
            self._add_row(result)
        if self._console.is_terminal:
            self._live.start()
            self._live.update(self._screen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.update(self._task, visible=False)
        if self._console.is_terminal:
            self._live.update(self._screen(whole=True))
            self._live.stop()
        if error is None:
            self._summarise()

    def on_step(
        self,
        step: int,
        total_steps: int,  # noqa: ARG002 - known from the run
        losses: dict[str, float],
        images_per_second: float,
    ) -> None:
        """Moves the bar."""
        old = self._images_per_second or images_per_second
        self._images_per_second = _SMOOTHING * old + (1 - _SMOOTHING) * images_per_second
        epoch, within = divmod(step - 1, self._run.steps_per_epoch)
        note = f"loss {sum(losses.values()):.3f}  {self._images_per_second:.1f} images/s  {self._time_left()} left"
        title = f"epoch {epoch + 1}/{self._run.config.epochs}"
        self._show(title, within + 1, self._run.steps_per_epoch, note)
        self._epoch_stepped_at = time.monotonic()

    def on_evaluation(self, done: int, total: int) -> None:
        """Moves the bar over the validation pictures."""
        self._show("evaluating", done, total, "")

    def on_epoch(
        self,
        results: list[EpochResult],
        metrics: Metrics | None,  # noqa: ARG002 - the row shows what is in the results
        run: Run,  # noqa: ARG002 - known
    ) -> None:
        """Adds a line to the table."""
        if results[-1].map is not None:
            self._evaluation_seconds = time.monotonic() - self._epoch_stepped_at
        self._add_row(results[-1])

    def _introduce(self) -> None:
        run, config = self._run, self._run.config
        cores = f", {self._processes} processes" if self._processes > 1 else ""
        first = (
            f"{config.model} on {run.device}{cores}: {len(run.train_set.categories)} categories, "
            f"{len(run.train_set.samples)} pictures to learn from, {len(run.val_set.samples)} to evaluate on, "
            f"canvas {'/'.join(map(str, config.augment.sizes))} px"
        )
        lines = [first]
        if not any(sample.labelled[sample.labels].any() for sample in run.val_set.samples):
            lines.append(f"warning: --val has no box to find: no epoch will be better than the first, which is {BEST}; "
                         f"take {LAST}")  # fmt: skip
        if run.initial:
            lines.append(str(run.initial))
        if run.step:
            lines.append(f"going on after step {run.step} of {run.total_steps}")
        for line in lines:
            self._console.print(Text(line), soft_wrap=True)

    def _time_left(self) -> str:
        run = self._run
        steps_left = run.total_steps - run.step
        seconds = steps_left * run.config.batch_size / max(self._images_per_second, 1e-9)
        return in_words(
            seconds + run.config.evaluations_after(run.step // run.steps_per_epoch) * self._evaluation_seconds
        )

    def _show(self, title: str, done: int, total: int, note: str) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, description=title, completed=done, total=total, note=note)
        elif time.monotonic() - self._said_at >= _PLAIN_LINE_SECONDS:
            self._said_at = time.monotonic()
            self._console.print(Text(f"{title}  {done}/{total}  {note}".rstrip()), soft_wrap=True)

    def _add_row(self, result: EpochResult) -> None:
        losses = (result.loss, result.objectness, result.rpn_box, result.classifier, result.box)
        cells = [
            str(result.epoch), *(_number(loss, ".3f") for loss in losses), _share(result.map), _share(result.map_50),
            _number(result.learning_rate, ".1e"), _number(result.images_per_second, ".1f"),
            self._time_left_after(result),
        ]  # fmt: skip
        self._rows.append((cells, "green" if result == best_of(self._run.results) else ""))
        if self._console.is_terminal:
            self._live.update(self._screen())
        else:
            line = "  ".join(f"{name} {cell}" for name, cell in zip(_COLUMNS, cells, strict=True))
            self._console.print(Text(line), soft_wrap=True)

    def _screen(self, *, whole: bool = False) -> Group:
        """The table above the bar; unless `whole`, only as many epochs, the latest, as the terminal has lines for."""
        room = len(self._rows) if whole else max(self._console.height - _LINES_AROUND_ROWS, 1)
        rows, shown = self._rows[-room:] if room else [], list(_COLUMNS)
        for name in _LEFT_OUT:
            if self._fits(_table(shown, rows)):
                break
            shown.remove(name)
        return Group(_table(shown, rows), self._bar)

    def _fits(self, table: Table) -> bool:
        options = self._console.options.update_width(_ANY_WIDTH)
        return self._console.measure(table, options=options).maximum <= self._console.width

    def _time_left_after(self, result: EpochResult) -> str:
        config = self._run.config
        left = config.epochs - result.epoch if result.epoch else 0
        evaluations = config.evaluations_after(result.epoch)
        return in_words(left * result.seconds + evaluations * self._evaluation_seconds) if left else "-"

    def _summarise(self) -> None:
        best, start = best_of(self._run.results), start_of(self._run.results)
        if best and start and (start.map or 0.0) > (best.map or 0.0):
            self._console.print(
                Text(f"warning: the starting weights are better on these pictures (mAP {_share(start.map)}): keep them "
                     "or try a lower --learning-rate, fewer epochs or more pictures"), soft_wrap=True, style="yellow",
            )  # fmt: skip
        if best:
            self._console.print(
                Text(f"best epoch {best.epoch}: mAP {_share(best.map)}, mAP@.50 {_share(best.map_50)}; "
                     f"weights in {self._run.directory / BEST}"), soft_wrap=True,
            )  # fmt: skip
