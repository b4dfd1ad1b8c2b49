"""Do the tests bite? Changes critical lines one at a time and looks whether the tests notice, for `make mutants`.

    .venv/bin/python tests/mutants.py
    .venv/bin/python tests/mutants.py --only "redirection to http"

Works on copies of the tree in a temporary folder, never on the checkout. First all tests that the list names must
pass unchanged; then each change must make its own test fail, or take longer than `LONGEST_SECONDS`. Prints every
change that no test has noticed; exit code 1 when fewer than `LEAST_SHARE` were noticed, 2 when the list does not fit
the code.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mutant_list import MUTANTS, Mutant

LEAST_SHARE = 0.95
LONGEST_SECONDS = 60.0
AT_ONCE = 2
ROOT = Path(__file__).parents[1]

_LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "dist", "shared")
_PASSED, _FAILED = 0, 1  # exit codes of pytest


class MutantsError(Exception):
    """The list does not fit the code, or its tests do not pass as they are."""


def changed(mutant: Mutant, text: str) -> str:
    """The text of a module with the change in it.

    Raises:
        MutantsError: what is to be changed does not stand there exactly once.
    """
    count = text.count(mutant.old)
    if count != 1:
        message = f"{mutant.name}: {mutant.file} holds {count} times, not once: {mutant.old!r}"
        raise MutantsError(message)
    return text.replace(mutant.old, mutant.new)


class Copy:
    """A copy of the tree, in which one test run at a time goes on.

    Args:
        root: the tree.
        folder: where the copy is made; it must not exist.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(root, folder, ignore=_LEFT_OUT)
        self._environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    def test(self, tests: Sequence[str], limit_seconds: float) -> tuple[int | None, str]:
        """Runs tests; returns the exit code of pytest, None where the time was over, and what it printed."""
        pytest = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:xdist", "--no-header")
        with tempfile.TemporaryFile() as output:
            self._process = subprocess.Popen(
                [*pytest, *tests], cwd=self.folder, env=self._environment, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = self._process.wait(limit_seconds)
            except subprocess.TimeoutExpired:
                code = None
                self.stop()
                self._process.wait()
            output.seek(0)
            return code, output.read().decode(errors="replace")

    def stop(self) -> None:
        """Kills the test run that goes on, and what it has started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def notices(self, mutant: Mutant) -> bool:
        """Whether the test of a change fails with it.

        Raises:
            MutantsError: the change does not fit, or pytest cannot run the test.
        """
        path = self.folder / mutant.file
        before = path.read_text()
        path.write_text(changed(mutant, before))
        try:
            code, output = self.test([mutant.test], LONGEST_SECONDS)
        finally:
            path.write_text(before)
        if code not in (_PASSED, _FAILED, None):
            message = f"{mutant.name}: pytest ends with {code}: {output[-2000:]}"
            raise MutantsError(message)
        return code != _PASSED

    def must_pass(self, tests: Sequence[str]) -> None:
        """Raises MutantsError where tests do not pass, or test another tree than this copy."""
        where = subprocess.check_output(
            [sys.executable, "-c", "import streamdet; print(streamdet.__file__)"], cwd="/", env=self._environment
        )
        if not Path(where.decode().strip()).is_relative_to(self.folder):
            message = f"the tests would run {where.decode().strip()}, not the copy in {self.folder}"
            raise MutantsError(message)
        for _ in range(2):  # on a busy machine, one of a hundred may fail for that
            code, output = self.test(tests, LONGEST_SECONDS * len(tests))
            if code == _PASSED:
                return
        message = f"the tests do not pass as they are: {output[-2000:]}"
        raise MutantsError(message)


def _pass_over(_mutant: Mutant, _is_noticed: bool) -> None: ...


def run(
    mutants: Sequence[Mutant], root: Path = ROOT, on_done: Callable[[Mutant, bool], None] = _pass_over
) -> list[str]:
    """Tries the changes; returns the names of those that no test has noticed.

    Args:
        mutants: the changes.
        root: the tree.
        on_done: called for each change that was tried, with whether its test noticed it.

    Raises:
        MutantsError: the list does not fit the code, or its tests do not pass as they are.
    """
    for mutant in mutants:
        changed(mutant, (root / mutant.file).read_text())
    survivors = set()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        made = [Copy(root, Path(folder, str(number))) for number in range(AT_ONCE)]
        tests = sorted({mutant.test for mutant in mutants})
        for passing in [pool.submit(copy.must_pass, tests[i::AT_ONCE]) for i, copy in enumerate(made) if tests[i:]]:
            passing.result()
        for copy in made:
            copies.put(copy)

        def try_one(mutant: Mutant) -> bool:
            copy = copies.get()
            try:
                return copy.notices(mutant)
            finally:
                copies.put(copy)

        trials = {pool.submit(try_one, mutant): mutant for mutant in mutants}
        try:
            for trial in as_completed(trials):
                mutant, is_noticed = trials[trial], trial.result()
                if not is_noticed:
                    survivors.add(mutant.name)
                on_done(mutant, is_noticed)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in made:  # where an error or Ctrl-C ends it
                copy.stop()
    return [mutant.name for mutant in mutants if mutant.name in survivors]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Change critical lines one at a time: do the tests notice?")
    parser.add_argument("--only", metavar="TEXT", default="", help="only changes whose name or file holds this text")
    wanted = parser.parse_args(arguments).only
    mutants = [mutant for mutant in MUTANTS if wanted in mutant.name or wanted in mutant.file]
    if not mutants:
        parser.error(f"no change has {wanted!r} in its name or file")
    console = Console()
    began = time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("changing lines", total=len(mutants))

        def show(mutant: Mutant, is_noticed: bool) -> None:
            if not is_noticed:
                progress.console.print(f"not noticed: {mutant.name}")
            progress.advance(task)

        try:
            survivors = run(mutants, on_done=show)
        except MutantsError as error:
            progress.stop()
            print(f"mutants: {error}", file=sys.stderr)  # noqa: T201
            return 2
        except KeyboardInterrupt:
            return 130
    table = Table("change", "file", "noticed", box=None)
    for mutant in mutants:
        table.add_row(mutant.name, mutant.file, "NO" if mutant.name in survivors else "yes")
    console.print(table)
    noticed = len(mutants) - len(survivors)
    console.print(f"{noticed} of {len(mutants)} changes noticed, in {time.monotonic() - began:.0f} s")
    for mutant in mutants:
        if mutant.name in survivors:
            console.print(
                f"not noticed: {mutant.name}: {mutant.old!r} -> {mutant.new!r} by {mutant.test}", soft_wrap=True
            )
    return 0 if noticed >= LEAST_SHARE * len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
