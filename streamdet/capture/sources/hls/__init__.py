"""Reads HLS: playlists, their keys and segments, each looked at before FFmpeg sees it."""
