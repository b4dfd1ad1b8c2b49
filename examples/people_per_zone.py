"""Print how many people are in each zone, whenever that changes."""

import argparse
import sys
from collections import Counter

from streamdet import Gap, ObjectEvent, Restart, StreamdetError, subscribe


def main() -> None:
    """Count objects by the zones that their newest event says they are in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint", nargs="?", default="tcp://127.0.0.1:5555", help="of the daemon's [publisher]")
    parser.add_argument("--label", default="person", help="what to count")
    arguments = parser.parse_args()
    zones_of: dict[tuple[str, str], list[str]] = {}
    shown: Counter[tuple[str, str]] = Counter()
    with subscribe(arguments.endpoint, kinds=["objects"], replay=True) as events:
        for event in events:
            match event:
                case ObjectEvent(phase="begin" | "update", object=found) if found.label == arguments.label:
                    zones_of[event.stream, found.object_id] = [visit.zone for visit in found.zones if visit.inside]
                case ObjectEvent(object=found):  # it has ended, or is something else on a second look
                    zones_of.pop((event.stream, found.object_id), None)
                case Gap() | Restart():  # an end may be lost; who is still there is reported again within 10 s
                    zones_of = {key: zones for key, zones in zones_of.items() if key[0] != event.stream}
            counts = Counter((stream, zone) for (stream, _), zones in zones_of.items() for zone in zones)
            for stream, zone in sorted((counts - shown) + (shown - counts)):
                print(f"{stream}  {zone}  {counts[stream, zone]}", flush=True)
            shown = counts


if __name__ == "__main__":
    try:
        main()
    except StreamdetError as error:
        sys.exit(f"people_per_zone: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
