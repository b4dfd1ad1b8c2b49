"""`streamdet install-service`: the daemon, and what runs beside it, as systemd services."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import click

from streamdet.cli.numbers import Number
from streamdet.config.bridges import BRIDGES
from streamdet.service.install.bridges import Bridges
from streamdet.service.install.cluster import ROLES, ClusterUnits
from streamdet.service.install.environment import Environment, own_environment, this_environment
from streamdet.service.install.service import Service, perform
from streamdet.service.install.upgrade import Upgrade

_KEPT = 3


@click.command(
    epilog="""\b
Examples:
  sudo streamdet install-service --dry-run
  sudo streamdet install-service
  sudo streamdet install-service --page --enable
  sudo streamdet install-service --bridge mqtt --bridge webhook
  sudo streamdet install-service --cluster node
  sudo streamdet install-service --wheel streamdet-0.2.0-py3-none-any.whl
  sudo streamdet install-service --rollback
  sudo streamdet install-service --instance yard --enable
  sudo streamdet install-service --uninstall --bridge mqtt
  sudo streamdet install-service --uninstall

\b
Run it again after an update: it changes only what differs, and never overwrites a configuration.
Daemons that run are restarted with the new version; if it is not ready in time, the old one runs
again.
Exit codes: 0 installed, 1 cannot be installed here, or the old version runs again."""
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option(
    "--instance", metavar="NAME", default="", help="Install one of several services: streamdet@NAME with NAME.toml."
)
@click.option("--page", is_flag=True, help="Install the page in the browser, too: streamdet-web.")
@click.option(
    "--bridge", "bridges", type=click.Choice(BRIDGES), multiple=True,
    help="Install this bridge, too: streamdet-bridge@NAME. May be repeated. With --uninstall: remove it alone.",
)  # fmt: skip
@click.option(
    "--cluster", "cluster", type=click.Choice(ROLES), multiple=True,
    help="Install this part of a cluster, too: streamdet-cluster-NAME. May be repeated. With --uninstall: remove it "
    "alone.",
)  # fmt: skip
@click.option(
    "--wheel", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Install streamdet from this file, with the packages of this environment. Needs no network.",
)  # fmt: skip
@click.option("--rollback", is_flag=True, help="Go back to the version before.")
@click.option(
    "--keep", type=click.IntRange(2), default=_KEPT, show_default=True,
    help="Keep this many versions in /opt/streamdet, and delete the oldest ones.",
)  # fmt: skip
@click.option(
    "--within", type=Number(1, 600), metavar="SECONDS",
    help="Go back if the new version is not ready after this time. Default: so that no stream is blind for 30 s.",
)  # fmt: skip
@click.option("--here", is_flag=True, help="Run the service from this environment, without a copy in /opt/streamdet.")
@click.option("--only-switch", is_flag=True, hidden=True, help="Switch to this version and restart nothing.")
@click.option("--enable", is_flag=True, help="Start the services now and at every boot.")
@click.option(
    "--gpu/--no-gpu", default=None, help="Allow it to use GPUs. Default: if the NVIDIA driver is loaded."
)  # fmt: skip
@click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path("/"),
    help="Install into the system image in this folder instead of this machine.",
)  # fmt: skip
@click.option(
    "--uninstall", is_flag=True, help="Stop and remove the service; configuration, secrets and state are kept."
)
def command(
    *,
    dry_run: bool,
    instance: str,
    page: bool,
    bridges: tuple[str, ...],
    cluster: tuple[str, ...],
    wheel: Path | None,
    rollback: bool,
    keep: int,
    within: float | None,
    here: bool,
    only_switch: bool,
    enable: bool,
    gpu: bool | None,
    root: Path,
    uninstall: bool,
) -> None:
    """Install the daemon as a systemd service, with what is wanted beside it, and print each step.

    It creates the user `streamdet`, /etc/streamdet with a configuration that explains every key, the unit, and a copy
    of this environment in /opt/streamdet/VERSION, which the service runs.
    """
    _check_together(
        instance=instance, page=page, bridges=bridges, cluster=cluster, wheel=wheel,
        elsewhere=here or rollback or root != Path("/"),
    )  # fmt: skip
    service = Service(root.resolve(), instance)
    if not dry_run:
        service.check_system()
    named, of_cluster = Bridges(service.root, bridges), ClusterUnits(service.root, cluster)
    if uninstall:
        _uninstall(service, named, of_cluster, dry_run=dry_run)
        return
    if not instance:  # what is there is kept up to date
        names = tuple(name for name in BRIDGES if name in {*bridges, *named.enabled()})
        roles = tuple(role for role in ROLES if role in {*cluster, *of_cluster.installed()})
        service = replace(service, page=page or service.has_page(), bridges=names, cluster=roles)
    named.check()
    replace(of_cluster, roles=service.cluster).check(enable=enable)
    use_gpu = _has_nvidia() if gpu is None else gpu
    environment = this_environment() if here else own_environment()
    if here:
        environment.check()
        changed = perform(service.install_steps(environment, gpu=use_gpu, enable=enable), click.echo, dry_run=dry_run)
    else:
        environment.check_folders()
        upgrade = Upgrade(service, environment, click.echo, gpu=use_gpu, enable=enable, dry_run=dry_run)
        target = upgrade.before() if rollback else upgrade.make(wheel)
        if only_switch or dry_run or not service.is_running_system:
            upgrade.switch(target)
            changed = False
        else:
            changed = upgrade.run(target, seconds=within, by_itself=rollback or wheel is not None)
            upgrade.prune(keep)
    for folder in environment.hidden():
        where = "is in a home or temporary folder"
        click.echo(f"note: {folder} {where}: anyone who can write there controls the service")
    if not dry_run and not only_switch:
        _print_next(service, environment, enabled=enable, changed=changed)


def _check_together(
    *, instance: str, page: bool, bridges: tuple[str, ...], cluster: tuple[str, ...], wheel: Path | None,
    elsewhere: bool,
) -> None:  # fmt: skip
    """Raises an error for options that exclude each other."""
    if page and instance:
        message = (
            "--page belongs to the service without a name; STREAMDET_WEB_OPTIONS of streamdet-web leads it elsewhere"
        )
        raise click.UsageError(message)
    if bridges and instance:
        message = "--bridge belongs to the service without a name; docs/bridges.md says how to lead one elsewhere"
        raise click.UsageError(message)
    if cluster and instance:
        message = "--cluster belongs to the service without a name; STREAMDET_JOIN_OPTIONS leads a node elsewhere"
        raise click.UsageError(message)
    if wheel is not None and elsewhere:
        message = "--wheel makes an environment in /opt/streamdet: it does not go with --here, --rollback or --root"
        raise click.UsageError(message)


def _uninstall(service: Service, named: Bridges, of_cluster: ClusterUnits, *, dry_run: bool) -> None:
    alone = [each.uninstall_steps() for each in (named, of_cluster) if each.units]
    perform(chain.from_iterable(alone or [service.uninstall_steps()]), click.echo, dry_run=dry_run)
    click.echo("kept: /etc/streamdet, /var/lib/streamdet*, /var/cache/streamdet, users")


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def _print_next(service: Service, environment: Environment, *, enabled: bool, changed: bool) -> None:
    unit, units = (
        service.unit.removesuffix(".service"),
        " ".join(name.removesuffix(".service") for name in service.units),
    )
    # There may be no link: another program may have the name, or the folder is read-only.
    program = "streamdet" if service.has_link(environment) else environment.scripts / "streamdet"
    click.echo("Next:")
    if service.bridges:
        click.echo(f"  write the secrets of bridges into {Bridges(service.root).secrets}, one file for each ${{NAME}}")
    if service.cluster and not enabled:
        token = ClusterUnits(service.root).token
        click.echo(f"  make {token} (streamdet cluster init) on the head, and copy it to the nodes")
    if "node" in service.cluster and not enabled:
        click.echo(f'  write group = "streamdet" into [control] of {service.config}')
        click.echo("  systemctl edit streamdet-cluster-node: [Service]")
        click.echo('    Environment="STREAMDET_JOIN_OPTIONS=HEAD --fps N"')
    if not enabled:
        click.echo(f"  edit {service.config}, then: {program} check {service.config}")
        click.echo(f"  systemctl enable --now {units}")
    if changed:
        click.echo(f"  if it ran before: systemctl restart {units}")
    click.echo(f"  systemctl status {unit}; journalctl -u {unit}")
    if service.page:
        click.echo("  look at http://127.0.0.1:8095/")
