"""The life of the daemon: what it builds, how it changes while it runs, and its pages."""
