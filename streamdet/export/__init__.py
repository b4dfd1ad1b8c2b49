"""Exports a detector to a file that runs faster: `streamdet export`.

frames       reads the user's frames: some for calibration, others for the comparison
run          runs all steps in order
"""
