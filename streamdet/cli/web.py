"""`streamdet web`: the page in the browser."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from streamdet.config import LogConfig
from streamdet.monitoring.log import configure_logging

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


@click.command(
    "web",
    epilog="""\b
Examples:
  streamdet web
  streamdet web ipc:///run/streamdet/events --listen 127.0.0.1:8080
  streamdet web --set-password /etc/streamdet/page.password
  streamdet web --listen 0.0.0.0:8443 --password-file web.password \\
      --tls-certificate cert.pem --tls-key key.pem
  streamdet web --behind-proxy --password-file web.password --host-name cams.example.org

\b
Exit codes: 0 stopped by a signal, 2 unsafe or wrong options, 69 address not available.""",
)
@click.argument("endpoint", default="tcp://127.0.0.1:5555")
@click.option(
    "--metrics", default="127.0.0.1:9095", show_default=True, metavar="HOST:PORT",
    help='Read stage times and drops from the daemon\'s metrics page here; "" for none.',
)  # fmt: skip
@click.option("--server-key", type=click.Path(path_type=Path), help="Expect this public key of the daemon.")
@click.option("--client-key", type=click.Path(path_type=Path), help="Log in with this key file, NAME.key_secret.")
@click.option(
    "--listen", "listen_at", default="127.0.0.1:8095", show_default=True, metavar="HOST:PORT",
    help="Serve the page here; port 0 takes any free one.",
)  # fmt: skip
@click.option(
    "--password-file", type=click.Path(path_type=Path), help="Require the password that is stored in this file."
)
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="Serve HTTPS with this certificate (PEM).")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Use this private key (PEM) of the certificate.")
@click.option("--behind-proxy", is_flag=True, help="Trust a reverse proxy in front that serves HTTPS.")
@click.option(
    "--host-name", "host_names", multiple=True, metavar="NAME",
    help="Accept this further host name in requests; may be repeated.",
)  # fmt: skip
@click.option(
    "--set-password", "new_password_file", type=click.Path(path_type=Path), metavar="FILE",
    help="Prompt for a password (or read a line of standard input), store its hash in FILE, and exit.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Log more, for finding faults.")
@click.option(
    "--state-directory", type=click.Path(path_type=Path), metavar="DIR",
    help="Keep here what was marked as reviewed. [default: $STATE_DIRECTORY, else $XDG_STATE_HOME/streamdet]",
)  # fmt: skip
@click.option("--end-with-stdin", is_flag=True, hidden=True, help="End when standard input ends.")
def command(
    *,
    endpoint: str,
    metrics: str,
    server_key: Path | None,
    client_key: Path | None,
    listen_at: str,
    password_file: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    behind_proxy: bool,
    host_names: tuple[str, ...],
    new_password_file: Path | None,
    verbose: bool,
    state_directory: Path | None,
    end_with_stdin: bool,
) -> None:
    """Serve a page that shows a running daemon's streams: live pictures, rates, states, events.

    ENDPOINT is the daemon's [publisher] endpoint, tcp://127.0.0.1:5555 if left out. Other machines are refused
    unless a password and TLS (here or in a proxy) are set.
    """
    if new_password_file is not None:
        _set_password(new_password_file)
        return
    from streamdet.security.files import state_folder
    from streamdet.web.server import serve
    from streamdet.web.settings import Settings

    host, port = _address("--listen", listen_at)
    if metrics:
        _address("--metrics", metrics)
    configure_logging(LogConfig(level="debug" if verbose else "info"))
    settings = Settings(
        endpoint=endpoint,
        metrics=metrics or None,
        server_key=server_key,
        client_key_file=client_key,
        host=host,
        port=port,
        password_file=password_file,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        behind_proxy=behind_proxy,
        host_names=host_names,
        state_directory=state_directory or state_folder(),
        end_with_stdin=end_with_stdin,
    )
    serve(settings, lambda address: click.echo(f"the page is at {address}"))


def _set_password(path: Path) -> None:
    from streamdet.security.passwords import Password, write_password

    if sys.stdin.isatty():
        text = click.prompt("New password", hide_input=True, confirmation_prompt="Again")
    else:
        text = sys.stdin.readline().rstrip("\r\n")
    write_password(path, Password.of(text))
    click.echo(f"wrote {path}, readable by you only")


def _address(option: str, text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        message = f"{text[:200]!r} is not an address; expected something like 127.0.0.1:8095"
        raise click.BadParameter(message, param_hint=option)
    return match["host"] or match["six"], int(match["port"])
