"""Finds cameras on the local network, and asks each for its streams: WS-Discovery and ONVIF."""
