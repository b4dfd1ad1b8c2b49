"""Explains the seven stages of the detector on one picture: runs it, draws what each stage yields, writes a page."""
