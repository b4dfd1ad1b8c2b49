"""Follows the detections of a stream from frame to frame: tracks, zones, lines. Pure: no sockets, no clocks."""
