"""Makes a file of a detector that runs faster: `streamdet export`.

frames       reads one's own frames: to calibrate with, and others to compare on
agreement    how far the detections of the exported detector are from those of the original
run          everything in its order
"""
