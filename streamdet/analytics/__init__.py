"""What detections mean from frame to frame: tracks, zones, lines. Pure, without sockets or clocks of its own."""
