"""The control socket: what programs on this machine ask of a running daemon. `docs/control.md` is the reference.

In the order of the data: `place` says where the socket is, `client` asks, `protocol` is what travels, `server` reads
requests and hands them to the daemon's main thread, which alone carries them out.
"""
