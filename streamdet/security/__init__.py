"""Access control and secrecy: keys, passwords, endpoints, limits, redaction, and files that hold secrets."""
