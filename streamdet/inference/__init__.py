"""Batches of frames go in, each frame with its detections comes out, in the order of its stream."""
