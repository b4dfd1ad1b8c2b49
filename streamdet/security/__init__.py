"""Keys, passwords, endpoints, redaction, limits, and files that hold secrets."""
