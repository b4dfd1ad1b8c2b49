"""`streamdet demo`."""

from __future__ import annotations

import contextlib
import json
import sys

import click

from streamdet.cli.standard_streams import ending_in_time
from streamdet.monitoring.log import configure_logging


@click.command(
    epilog="""\b
Examples:
  streamdet demo
  streamdet demo --no-page
  streamdet demo --seconds 20
  streamdet demo --seconds 20 --json"""
)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="End after so long, with a summary.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON and nothing else.")
@click.option(
    "--endpoint", default="tcp://127.0.0.1:5555", show_default=True, help="Of the events; free port if taken."
)
@click.option("--metrics-endpoint", default="127.0.0.1:9095", show_default=True, help="The same for the metrics.")
@click.option("--page", default="127.0.0.1:8095", show_default=True, metavar="HOST:PORT", help="The same for the page.")
@click.option("--no-page", is_flag=True, help="Show nothing in the browser; --json does not either.")
def command(
    *, seconds: float | None, as_json: bool, endpoint: str, metrics_endpoint: str, page: str, no_page: bool
) -> None:
    """See it work: two streams of real video are detected in real time, by the real daemon."""
    from rich.console import Console  # noqa: PLC0415 - what only this command needs

    from streamdet.cli.child import WebChild  # noqa: PLC0415
    from streamdet.cli.demonstration import DemoView, demo_config, free_endpoint, summary_table  # noqa: PLC0415
    from streamdet.service.daemon import Daemon  # noqa: PLC0415

    config = demo_config(endpoint, metrics_endpoint)
    configure_logging(config.log)
    console = Console()
    daemon = Daemon(config)
    with contextlib.ExitStack() as stack:
        address = ""
        if not as_json and not no_page:
            child = WebChild(config.publisher.endpoint, config.metrics.endpoint, free_endpoint(page))
            address = stack.enter_context(child).address
        view = DemoView(daemon, seconds, None if as_json else console, address)
        if not as_json:
            console.print("loading the detector ...")
        with daemon.signals():
            code = daemon.run(view.start)
        view.stop()
        view.join()
    if view.error is not None:
        raise view.error
    summary = view.summary()
    with ending_in_time(code):
        if as_json:
            click.echo(json.dumps(summary, indent=2))
        else:
            console.print(summary_table(summary, console.width))
        sys.stdout.flush()
    sys.exit(code)
