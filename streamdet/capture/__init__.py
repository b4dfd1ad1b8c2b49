"""Reads the streams: one thread for each, which opens its source again whenever it fails."""
