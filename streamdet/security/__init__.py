"""Who may connect and what may be shown: keys, passwords, endpoints, limits, redaction, and files that hold secrets."""
