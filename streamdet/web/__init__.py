"""The page: a wall of live pictures in a browser, a subscriber like any other, in a process of its own."""
