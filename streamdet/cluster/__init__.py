"""Many machines: which node watches which stream, and how the daemons of the nodes get to know."""
