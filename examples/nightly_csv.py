"""Append each object that has ended to the CSV file of its day; soon after midnight the file of the day is complete."""

import argparse
import csv
import sys
from datetime import datetime
from pathlib import Path

from streamdet import ObjectEvent, StreamdetError, subscribe


def append(folder: Path, event: ObjectEvent) -> None:
    """Append one object, unless it is there: replay begins with the newest event, which may be known."""
    found, last_seen = event.object, datetime.fromtimestamp(event.frame.captured_at).astimezone()
    row = {"object_id": found.object_id, "stream": event.stream, "label": found.label, "score": found.score}
    row |= {"last_seen": last_seen.isoformat(timespec="milliseconds"), "seconds": found.seconds}
    row |= {"zones": "; ".join(f"{visit.zone} {visit.seconds}" for visit in found.zones), "reason": event.reason or ""}
    with (folder / f"objects-{last_seen:%Y-%m-%d}.csv").open("a+", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if file.tell() == 0:
            writer.writeheader()
        file.seek(0)
        if not any(line.startswith(f"{found.object_id},") for line in file):
            writer.writerow(row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files are, objects-YEAR-MONTH-DAY.csv")
    parser.add_argument("endpoint", nargs="?", default="tcp://127.0.0.1:5555", help="of the daemon's [publisher]")
    arguments = parser.parse_args()
    try:
        with subscribe(arguments.endpoint, kinds=["objects"], replay=True) as events:
            for event in events:
                if isinstance(event, ObjectEvent) and event.phase == "end":
                    append(arguments.folder, event)
    except (StreamdetError, OSError, KeyboardInterrupt) as error:
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else f"nightly_csv: {error}")
