"""Delivers results to subscribers: events, replay and previews, over connections that are guarded."""
