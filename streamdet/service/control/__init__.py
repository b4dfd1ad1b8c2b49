"""The control API: how programs ask and change a running daemon. `docs/control.md` is the reference.

In the order of the data: `unix_socket` and `api` read requests and hand them to the daemon's main thread, in which
`operations` carries them out. `openapi.json` describes the API. Programs send requests with `streamdet.client.control`.
"""
