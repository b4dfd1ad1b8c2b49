"""Makes a file of a detector that runs faster: `streamdet export`.

frames       reads one's own frames: to calibrate with, and others to compare on
run          everything in its order
"""
