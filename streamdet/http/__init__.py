"""The HTTP server of every page and API: `server` bounds what clients may use, `access` decides who may ask."""
