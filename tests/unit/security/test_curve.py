from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import zmq.auth
from click.testing import CliRunner, Result

from streamdet.cli.keys import command
from streamdet.security.curve import KeyFileError, client_keys, generate, public_files, read_pair, read_public


def keys(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_pair_is_two_files_of_which_one_is_secret(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        result = keys("generate", tmp_path / "new", "--name", "alice")
    finally:
        os.umask(before)
    assert result.exit_code == 0, result.output
    public, secret = tmp_path / "new" / "alice.key", tmp_path / "new" / "alice.key_secret"
    assert (mode_of(public), mode_of(secret), mode_of(public.parent)) == (0o644, 0o600, 0o700)
    assert sorted(path.name for path in public.parent.iterdir()) == ["alice.key", "alice.key_secret"]
    pair = read_pair(secret, "client")
    assert read_public(public) == pair.public
    assert pair.secret.decode() not in result.output + public.read_text() + repr(pair)


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    public, secret = generate(tmp_path, "alice", "client")
    pair = read_pair(secret, "client")
    assert zmq.auth.load_certificate(secret) == (pair.public, pair.secret)
    assert zmq.auth.load_certificate(public) == (pair.public, None)


def test_files_of_other_programs_are_read(tmp_path: Path) -> None:
    _, secret = zmq.auth.create_certificates(tmp_path, "alice")
    Path(secret).chmod(0o600)
    pair = read_pair(Path(secret), "client")
    assert zmq.auth.load_certificate(secret) == (pair.public, pair.secret)


@pytest.mark.parametrize("left", ["alice.key", "alice.key_secret"])
def test_keys_that_are_there_stay(tmp_path: Path, left: str) -> None:
    generate(tmp_path, "alice", "client")
    for path in tmp_path.iterdir():
        if path.name != left:
            path.unlink()
    before = (tmp_path / left).read_bytes()
    result = keys("generate", tmp_path, "--name", "alice")
    assert isinstance(result.exception, KeyFileError)
    assert "exists already" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == [left]
    assert (tmp_path / left).read_bytes() == before
    assert keys("generate", tmp_path, "--name", "alice", "--force").exit_code == 0
    assert read_pair(tmp_path / "alice.key_secret", "client").public == read_public(tmp_path / "alice.key")


def test_a_client_is_let_in_listed_and_revoked(tmp_path: Path) -> None:
    clients = tmp_path / "clients"
    assert keys("generate", tmp_path, "--name", "alice", "--allow", clients).exit_code == 0
    assert keys("generate", tmp_path, "--name", "bob").exit_code == 0
    assert keys("allow", clients, tmp_path / "bob.key").exit_code == 0
    assert [path.name for path in public_files(clients)] == ["alice.key", "bob.key"]
    rows = json.loads(keys("list", clients, "--json").output)
    assert [(row["name"], row["public_key"]) for row in rows] == [
        ("alice", read_public(tmp_path / "alice.key").decode()),
        ("bob", read_public(tmp_path / "bob.key").decode()),
    ]
    assert "alice" in keys("list", clients).output
    assert keys("revoke", clients, "alice").exit_code == 0
    assert [path.name for path in public_files(clients)] == ["bob.key"]
    result = keys("revoke", clients, "alice")
    assert str(result.exception) == f"{clients} has no client 'alice'; there are bob"


def test_a_link_to_nothing_is_listed_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "alice.key").symlink_to(tmp_path / "gone")
    (row,) = json.loads(keys("list", tmp_path, "--json").output)
    assert (row["name"], row["since"], row["public_key"]) == ("alice", "", None)
    assert "No such file" in row["problem"]


def test_revoking_says_when_the_same_key_is_let_in_under_another_name(tmp_path: Path) -> None:
    clients = tmp_path / "clients"
    assert keys("generate", tmp_path, "--name", "alice", "--allow", clients).exit_code == 0
    assert keys("generate", tmp_path, "--name", "bob", "--allow", clients).exit_code == 0
    (clients / "old-alice.key").write_bytes((clients / "alice.key").read_bytes())
    (clients / "broken.key").write_text("no key")
    result = keys("revoke", clients, "alice")
    assert isinstance(result.exception, KeyFileError)
    assert str(result.exception).endswith("but the same key is still allowed as old-alice: revoke that, too")
    assert not (clients / "alice.key").exists()
    assert keys("revoke", clients, "old-alice").exit_code == 0
    assert keys("revoke", clients, "broken").exit_code == 0


def test_no_secret_gets_into_the_directory_of_clients(tmp_path: Path) -> None:
    _, secret = generate(tmp_path, "alice", "client")
    assert isinstance(keys("allow", tmp_path / "clients", secret).exception, KeyFileError)
    assert keys("allow", tmp_path / "clients", tmp_path / "alice.key").exit_code == 0
    key = read_pair(secret, "client").secret
    assert all(key not in path.read_bytes() for path in (tmp_path / "clients").iterdir())


@pytest.mark.parametrize("name", ["", "../alice", "a/b", ".hidden", "-x", "a" * 65, "a\nb"])
def test_a_name_never_leaves_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="is not a name for a key"):
        generate(tmp_path, name, "client")
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    _, secret = generate(tmp_path, "alice", "client")
    secret.chmod(0o640)
    with pytest.raises(KeyFileError, match=f"others can read the secret key {secret}; run: chmod 600 {secret}"):
        read_pair(secret, "client")


def test_a_credential_of_systemd_may_show_as_readable_by_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = generate(tmp_path, "server", "server")
    secret.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_pair(secret, "server").secret


def test_the_keys_of_the_two_sides_cannot_be_mistaken(tmp_path: Path) -> None:
    public, secret = generate(tmp_path, "server", "server")
    with pytest.raises(KeyFileError, match="is the key of a server; a client key is needed"):
        client_keys(public, secret)


@pytest.mark.parametrize(
    "content",
    [b"", b"dear diary", b'curve\n    public-key = "short"\n', b"\xff" * 100, b"x" * 100_000],
    ids=["empty", "text", "short", "bytes", "large"],
)
def test_what_holds_no_key_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "alice.key"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match="holds no public key; make one with: streamdet keys generate") as caught:
        read_public(path)
    assert "\n" not in str(caught.value)


def test_a_pair_that_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    _, alice = generate(tmp_path, "alice", "client")
    generate(tmp_path, "bob", "client")
    text = alice.read_text().replace(
        read_public(tmp_path / "alice.key").decode(), read_public(tmp_path / "bob.key").decode()
    )
    alice.write_text(text)
    with pytest.raises(KeyFileError, match="do not belong together"):
        read_pair(alice, "client")


def test_half_of_the_keys_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="go together"):
        client_keys(tmp_path / "server.key", None)
    assert client_keys(None, None) is None
