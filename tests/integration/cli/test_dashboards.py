"""`streamdet dashboards` writes what configs/ holds, and keeps what a person has changed."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from streamdet.cli.dashboards import command
from support.paths import ROOT


def dashboards(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_it_writes_all_that_grafana_and_prometheus_read(tmp_path: Path) -> None:
    out = tmp_path / "new" / "monitoring"
    assert dashboards("--out", str(out)).exit_code == 0
    written = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    sources = [path for kind in ("grafana", "prometheus") for path in (ROOT / "configs" / kind).rglob("*")]
    assert written == {path.relative_to(ROOT / "configs"): path.read_bytes() for path in sources if path.is_file()}
    assert len(written) >= 6
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o644}
    again = dashboards("--out", str(out))
    assert all(line.startswith("unchanged  ") for line in again.stdout.splitlines())


def test_a_changed_file_is_kept_until_it_may_be_replaced(tmp_path: Path) -> None:
    dashboards("--out", str(tmp_path))
    job, dashboard = tmp_path / "prometheus/prometheus.yml", tmp_path / "grafana/dashboards/streamdet.json"
    job.write_text("scrape_configs: []\n")
    dashboard.unlink()
    refused = dashboards("--out", str(tmp_path))
    assert str(refused.exception) == f"{job} differs: use --force to replace, or another folder"
    assert job.read_text() == "scrape_configs: []\n"
    assert not dashboard.exists()
    assert f"replaced   {job}\n" in dashboards("--out", str(tmp_path), "--force").stdout
    assert job.read_bytes() == (ROOT / "configs/prometheus/prometheus.yml").read_bytes()
    assert dashboard.exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = dashboards("--out", str(tmp_path / "file" / "in"))
    assert failed.exception is not None
    assert "file" in str(failed.exception)
    assert len(str(failed.exception).splitlines()) == 1
