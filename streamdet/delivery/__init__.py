"""What was detected leaves the process: events, replay, previews, and who may have them."""
