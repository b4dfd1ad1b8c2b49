"""Follows the detections of a stream over time: tracks, zones, objects, rules. Pure: no sockets, no clocks."""
