"""What operators see: the frame ledger, metrics, rates, traces and the log."""
