"""Explains the seven stages of the detector on one picture: runs it, draws the result of each stage, writes a page."""
