"""`streamdet alerts`: the alerts of the past."""

from __future__ import annotations

from typing import Any

import click

from streamdet.cli.past_events import PastEvents, Span, Wanted, has_picture, options
from streamdet.config.values import in_words


@click.command(
    "alerts",
    epilog="""\b
Examples:
  streamdet alerts
  streamdet alerts --since '2 h ago' --stream yard --rule 'person at the door'
  streamdet alerts --since 2026-11-29T22:00 --until 2026-11-30T06:00 --limit 1000
  streamdet alerts --since '24 h ago' --pictures night/
  streamdet alerts --json | jq -r '.alert.rule' | sort | uniq -c

\b
Exit codes: 0 done, also where there are none, 1 refused: nothing is kept on disk, 2 wrong
options, 69 no daemon answers.""",
)
@click.option("--rule", metavar="NAME", help="Show only alerts of this rule.")
@options
def command(*, rule: str | None, **chosen: Any) -> None:  # noqa: ANN401 - as the options are declared
    """List the alerts of the past, in the order in which they were raised.

    They come from the disk of a running daemon ([spool]), also those from before its last start. New ones are shown
    by `streamdet watch --kind alerts`.
    """
    past = PastEvents("alerts", Wanted(**chosen))
    past.show(past.spans(("raised", "cleared"), "alert_id", rule=rule), ("rule", "about", "lasted", "kept"), _row)


def _row(span: Span) -> tuple[str, ...]:
    alert = span.begin["alert"]
    what = alert.get("label") or (f"{alert['count']} objects" if "count" in alert else "")
    where = f"in {alert['zone']}" if "zone" in alert else f"over {alert['line']}" if "line" in alert else ""
    lasted = in_words(span.end["alert"]["seconds"]) if span.end else "lasts"
    kept = [*(["picture"] if has_picture(span) else []), *(["clip"] if "clip_id" in span.begin else [])]
    return alert["rule"], f"{what} {where}".strip(), lasted, ", ".join(kept)
