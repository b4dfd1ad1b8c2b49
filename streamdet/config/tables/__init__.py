"""The tables of the configuration file, a module each: every key with its type, range, default and meaning."""
