"""Options that take a number."""

from __future__ import annotations

import math

import click


class Number(click.FloatRange):
    """A finite number in a range. For click's own type, NaN lies in every range."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number.

        Raises:
            click.BadParameter: it is none, or not in the range.
        """
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number
