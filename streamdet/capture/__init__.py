"""Runs the streams: a thread for each, which opens its source again whenever it fails."""
