"""`streamdet web`: the page in the browser."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
from click.core import ParameterSource

from streamdet.config import LogConfig
from streamdet.monitoring.log import configure_logging
from streamdet.security.passwords import ROLES, Role

_FILE = click.Path(path_type=Path, dir_okay=False)
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


@click.command(
    "web",
    epilog="""\b
Examples:
  streamdet web
  streamdet web ipc:///run/streamdet/events --listen 127.0.0.1:8080
  streamdet web --set-password /etc/streamdet/page.password
  streamdet web --set-password page.users --user alice --role operator
  streamdet web --config streamdet.toml
  streamdet web --cluster head.example --head-ca ca.pem --head-token reader.token
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
@click.option("--cluster", metavar="HEAD", help="Show all nodes of the cluster with this head, HOST[:PORT].")
@click.option("--head-ca", type=_FILE, help="Expect a certificate that the cluster's ca.pem has signed.")
@click.option("--head-token", type=_FILE, help="Show the head this token, the cluster's reader.token.")
@click.option(
    "--server-key", type=click.Path(path_type=Path),
    help="Expect this public key of the daemon; of a cluster, also a folder with NODE.key.",
)  # fmt: skip
@click.option("--client-key", type=click.Path(path_type=Path), help="Log in with this key file, NAME.key_secret.")
@click.option(
    "--listen", "listen_at", default="127.0.0.1:8095", show_default=True, metavar="HOST:PORT",
    help="Serve the page here; port 0 takes any free one.",
)  # fmt: skip
@click.option(
    "--config", "-c", "config_path", type=click.Path(path_type=Path),
    help="Read [web] of this configuration, and change the daemon that runs it, where [web] allows that.",
)  # fmt: skip
@click.option(
    "--socket", "socket_path", type=click.Path(path_type=Path), envvar="STREAMDET_SOCKET", show_envvar=True,
    help="Change the daemon with this control socket.",
)  # fmt: skip
@click.option(
    "--password-file", type=click.Path(path_type=Path), help="Require a login: a user or the password of this file."
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
@click.option("--user", metavar="NAME", help="With --set-password: add this user, or replace the password.")
@click.option(
    "--role", type=click.Choice(ROLES), help="With --set-password: whether the user may also change. [default: viewer]"
)
@click.option("--verbose", "-v", is_flag=True, help="Log more, for finding faults.")
@click.option(
    "--state-directory", type=click.Path(path_type=Path), metavar="DIR",
    help="Keep here what was marked as reviewed. [default: $STATE_DIRECTORY, else $XDG_STATE_HOME/streamdet]",
)  # fmt: skip
@click.option("--end-with-stdin", is_flag=True, hidden=True, help="End when standard input ends.")
@click.pass_context
def command(
    context: click.Context,
    *,
    endpoint: str,
    metrics: str,
    cluster: str | None,
    head_ca: Path | None,
    head_token: Path | None,
    server_key: Path | None,
    client_key: Path | None,
    listen_at: str,
    config_path: Path | None,
    socket_path: Path | None,
    password_file: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    behind_proxy: bool,
    host_names: tuple[str, ...],
    new_password_file: Path | None,
    user: str | None,
    role: Role | None,
    verbose: bool,
    state_directory: Path | None,
    end_with_stdin: bool,
) -> None:
    """Serve a page that shows a running daemon's streams: live pictures, rates, states, events.

    ENDPOINT is the daemon's [publisher] endpoint, tcp://127.0.0.1:5555 if left out. With --cluster the page shows
    the streams of all nodes, each from the node that owns it. Other machines are refused
    unless a password and TLS (here or in a proxy) are set.
    """
    if new_password_file is not None:
        _set_password(new_password_file, user, role)
        return
    if user is not None or role is not None:
        message = "--user and --role belong to --set-password FILE"
        raise click.UsageError(message)
    _check_cluster(context, cluster, head_ca or head_token)
    from streamdet.client.head import HeadAddress
    from streamdet.config.load import load_web
    from streamdet.config.web import WebConfig
    from streamdet.security.files import state_folder
    from streamdet.web.server import serve
    from streamdet.web.settings import Settings

    host, port = _address("--listen", listen_at)
    head = None if cluster is None else HeadAddress.parse(cluster, head_ca, head_token)
    if metrics:
        _address("--metrics", metrics)
    configure_logging(LogConfig(level="debug" if verbose else "info"))
    web = WebConfig() if config_path is None else load_web(config_path)
    if password_file is None and web.password_file is not None:
        password_file = Path(web.password_file)
    settings = Settings(
        endpoint=endpoint,
        cluster=head,
        metrics=metrics or None,
        server_key=server_key,
        client_key_file=client_key,
        host=host,
        port=port,
        password_file=password_file,
        allow_changes=web.allow_changes,
        socket_path=socket_path,
        config_path=config_path,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        behind_proxy=behind_proxy,
        host_names=host_names,
        state_directory=state_directory or state_folder(),
        end_with_stdin=end_with_stdin,
    )
    serve(settings, lambda address: click.echo(f"the page is at {address}"))


def _check_cluster(context: click.Context, cluster: str | None, head_file: Path | None) -> None:
    """Refuses options that do not go together."""
    if cluster is None and head_file is not None:
        message = "--head-ca and --head-token belong to --cluster HEAD"
        raise click.UsageError(message)
    given = [context.get_parameter_source(name) for name in ("endpoint", "metrics", "socket_path")]
    if cluster is not None and ParameterSource.COMMANDLINE in given:
        message = "with --cluster the head names the daemons; leave ENDPOINT, --metrics and --socket out"
        raise click.UsageError(message)


def _set_password(path: Path, name: str | None, role: Role | None) -> None:
    from streamdet.security.passwords import USER_NAME, Password, User, read_users, write_password, write_user
    from streamdet.web.access import SHARED_NAME

    if name is not None and (USER_NAME.fullmatch(name) is None or name == SHARED_NAME):
        message = f"{name[:64]!r} is no name of a user: use up to 64 letters, digits, and . _ @ - within"
        raise click.BadParameter(message, param_hint="--user")
    known = read_users(path) if path.exists() and (name is not None or role is not None or _has_names(path)) else {}
    if name is None and any(known):
        message = f"{path} has users; name one with --user"
        raise click.UsageError(message)
    if sys.stdin.isatty():
        text = click.prompt("New password", hide_input=True, confirmation_prompt="Again")
    else:
        text = sys.stdin.readline().rstrip("\r\n")
    password = Password.of(text)
    if name is None and role is None:
        write_password(path, password)
        click.echo(f"wrote {path}, readable by you only")
        return
    before = known.get(name or "")
    user = User(name or "", role or ("viewer" if before is None else before.role), password)
    write_user(path, user)
    who = f"the {user.role} {user.name}" if user.name else f"a {user.role} without a name"
    click.echo(f"wrote {path}, readable by you only: {who} may log in")
    if user.name and "" in known:
        click.echo(f"its password without a name is still valid, for a {known[''].role}; delete its line to end that")


def _has_names(path: Path) -> bool:
    """Whether a file is one of users; one that is something else, or damaged, may be replaced as before."""
    from streamdet.security.passwords import PasswordError, read_users

    try:
        return any(read_users(path))
    except PasswordError:
        return False


def _address(option: str, text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        message = f"{text[:200]!r} is not an address; expected something like 127.0.0.1:8095"
        raise click.BadParameter(message, param_hint=option)
    return match["host"] or match["six"], int(match["port"])
