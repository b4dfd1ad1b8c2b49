"""A real RTSP server for tests: GStreamer's, run by the system's python3 (`tests/rtsp.py` starts it).

The only argument is JSON: {"port": n, "address": "127.0.0.1", "tls": {"certificate", "key"} | null, "shared": bool,
"login": {"user", "password", "method": "basic" | "digest"} | null, "udp_ports": [first, last] | null,
"mounts": {"/path": {"launch": "...", "transport": "tcp" | "udp" | null}}}. Prints the port when it listens,
and then the path that each client plays.
"""

import json
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - the versions come first

_TRANSPORTS = {"tcp": GstRtsp.RTSPLowerTrans.TCP, "udp": GstRtsp.RTSPLowerTrans.UDP}


def protect(server: GstRtspServer.RTSPServer, tls: dict | None, login: dict | None) -> None:
    if tls is None and login is None:
        return
    auth = GstRtspServer.RTSPAuth()
    if tls is not None:
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_files(tls["certificate"], tls["key"]))
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    if login is None:
        auth.set_default_token(token)
    elif login["method"] == "digest":
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(login["user"], login["password"], token)
    else:
        basic = GstRtspServer.RTSPAuth.make_basic(login["user"], login["password"])
        auth.add_basic(basic, token)
    server.set_auth(auth)


def say_what_plays(_client: GstRtspServer.RTSPClient, context: GstRtspServer.RTSPContext) -> None:
    sys.stdout.write(f"{context.uri.abspath}\n")
    sys.stdout.flush()


def main() -> None:
    wanted = json.loads(sys.argv[1])
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address(wanted.get("address", "127.0.0.1"))
    server.set_service(str(wanted["port"]))
    for path, mount in wanted["mounts"].items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(f"( {mount['launch']} )")
        factory.set_shared(wanted["shared"])
        if mount.get("transport"):
            factory.set_protocols(_TRANSPORTS[mount["transport"]])
        if wanted.get("tls") or wanted.get("login"):
            role = "viewer, media.factory.access=true, media.factory.construct=true"
            factory.add_role_from_structure(Gst.Structure.new_from_string(role))
        if wanted.get("udp_ports"):
            pool = GstRtspServer.RTSPAddressPool()
            anywhere = GstRtspServer.RTSP_ADDRESS_POOL_ANY_IPV4
            pool.add_range(anywhere, anywhere, *wanted["udp_ports"], 0)
            factory.set_address_pool(pool)
        server.get_mount_points().add_factory(path, factory)
    protect(server, wanted.get("tls"), wanted.get("login"))
    server.connect("client-connected", lambda _server, client: client.connect("play-request", say_what_plays))
    if not server.attach(None):
        sys.exit("the port is taken")
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


main()
