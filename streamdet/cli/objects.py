"""`streamdet objects`: the objects of the past."""

from __future__ import annotations

from typing import Any

import click

from streamdet.cli.past_events import PastEvents, Span, Wanted, has_picture, options
from streamdet.config.values import in_words


@click.command(
    "objects",
    epilog="""\b
Examples:
  streamdet objects --since '2 h ago' --label person
  streamdet objects --stream yard --limit 1000 --json | jq .object.seconds
  streamdet objects --label car --since '24 h ago' --pictures cars/

\b
Exit codes: 0 done, also where there are none, 1 refused: nothing is kept on disk, 2 wrong
options, 69 no daemon answers.""",
)
@click.option("--label", metavar="LABEL", help="Show only objects with this label, the last one that they had.")
@options
def command(*, label: str | None, **chosen: Any) -> None:  # noqa: ANN401 - as the options are declared
    """List the objects of the past, in the order in which they were first seen.

    They come from the disk of a running daemon ([spool]), also those from before its last start. New ones are shown
    by `streamdet watch --kind objects`.
    """
    past = PastEvents("objects", Wanted(**chosen))
    spans = past.spans(("begin", "end"), "object_id")
    wanted = (span for span in spans if label is None or span.newest["object"]["label"] == label)
    past.show(wanted, ("label", "score", "zones", "seen for", "end", "kept"), _row)


def _row(span: Span) -> tuple[str, ...]:
    event = span.newest
    found = event["object"]
    zones = [(visit["zone"], in_words(visit["seconds"])) for visit in found["zones"]]
    seen = in_words(found["seconds"]) if span.end else "is there"
    return (
        found["label"],
        f"{found['score']:.2f}",
        ", ".join(f"{zone} {seconds}" if span.end else zone for zone, seconds in zones),
        seen,
        event.get("reason", ""),
        "picture" if has_picture(span) else "",
    )
