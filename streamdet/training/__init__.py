"""Training, evaluation and explanation of the detector."""
