"""`streamdet schema`: the JSON Schemas of the configuration, the events and replay, and the list of the metrics."""

from __future__ import annotations

import json
from typing import Any

import click

_EPILOG = """\b
Examples:
  streamdet schema config > streamdet.schema.json
  streamdet schema config --markdown
  streamdet schema events > events.schema.json
  streamdet schema metrics --markdown"""


@click.command(epilog=_EPILOG)
@click.argument("subject", type=click.Choice(["config", "events", "replay", "metrics"]))
@click.option("--markdown", is_flag=True, help="Print the configuration or the metrics as Markdown tables.")
def command(subject: str, *, markdown: bool) -> None:
    """Print the JSON Schema (2020-12) of the configuration, the events or replay, or the list of the metrics."""
    if markdown:
        click.echo(_tables(subject), nl=False)
        return
    click.echo(json.dumps(_schema(subject), indent=2, ensure_ascii=False))


def _tables(subject: str) -> str:
    if subject == "config":
        from streamdet.config.schema import markdown_tables

        return markdown_tables()
    if subject == "metrics":
        from streamdet.monitoring.reference import markdown_table

        return markdown_table()
    msg = f"{subject} cannot be printed as Markdown; leave --markdown out, or see docs/{subject}.md"
    raise click.UsageError(msg)


def _schema(subject: str) -> dict[str, Any] | list[dict[str, Any]]:
    if subject == "events":
        from streamdet.wire import events_schema

        return events_schema()
    if subject == "replay":
        from streamdet.wire import replay_schema

        return replay_schema()
    if subject == "metrics":
        from streamdet.monitoring.reference import metrics_reference

        return metrics_reference()
    from streamdet.config.schema import config_schema

    return config_schema()
