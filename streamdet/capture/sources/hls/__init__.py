"""Reads HLS: playlists, their keys and segments, each checked before FFmpeg reads it."""
