"""Installs the daemon as a system service: the user, folders, a configuration, the unit, and reports each step."""
