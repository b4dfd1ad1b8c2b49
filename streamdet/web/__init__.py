"""The page: live pictures of all streams in a browser. It is a subscriber like any other, in a separate process."""
