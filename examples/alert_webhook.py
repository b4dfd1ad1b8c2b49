"""Post each alert as JSON to a URL, and try again while that fails."""

import argparse
import sys
import time
import urllib.request
from http.client import HTTPException

from streamdet import AlertEvent, Gap, StreamdetError, subscribe, wire


def post(url: str, event: AlertEvent, tries: int = 8) -> None:
    """Post one event; should it reach the receiver twice, it has the same key."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"{event.alert.alert_id}-{event.phase}"}
    for left in reversed(range(tries)):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, wire.encode(event), headers), timeout=10):
                return
        except (OSError, HTTPException) as error:
            print(f"alert_webhook: {event.alert.alert_id}: {error}; {left} tries left", file=sys.stderr)
            time.sleep(2 ** (tries - left) / 4 if left else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="where to post: http:// or https://")
    parser.add_argument("endpoint", nargs="?", default="tcp://127.0.0.1:5555", help="of the daemon's [publisher]")
    arguments = parser.parse_args()
    if not arguments.url.startswith(("http://", "https://")):
        parser.error(f"{arguments.url} is neither http:// nor https://")
    try:
        with subscribe(arguments.endpoint, kinds=["alerts"], replay=True) as events:
            for event in events:  # while one is posted, the next ones wait; the very first one may be an old one
                if isinstance(event, AlertEvent) and time.time() - event.published_at < 3600:
                    post(arguments.url, event)
                elif isinstance(event, Gap):
                    print(f"alert_webhook: lost {event.count} alerts of {event.stream}", file=sys.stderr)
    except (StreamdetError, KeyboardInterrupt) as error:
        sys.exit(f"alert_webhook: {error}" if isinstance(error, StreamdetError) else 130)
