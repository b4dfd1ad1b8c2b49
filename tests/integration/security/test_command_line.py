"""What a user types is not seen by others for longer than the start of the program takes."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import pathlib, sys
from streamdet.security.command_line import hide_secrets
hide_secrets()
print(pathlib.Path("/proc/self/cmdline").read_bytes().replace(b"\\0", b"|").decode())
print(*sys.argv[1:], sep="|")
"""


def shown(*arguments: str) -> tuple[list[str], list[str]]:
    """The arguments as the system shows them, and as the program has them."""
    result = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    seen, had = (
        result.stdout.rsplit("\n", 2)[-3:-1] if result.stdout.count("\n") < 3 else result.stdout.splitlines()[-2:]
    )
    return seen.rstrip("|").split("|")[-len(arguments) :], had.split("|")


def test_logins_and_tokens_are_hidden_and_still_used() -> None:
    given = ["door=rtsp://ann:s3cret-Pw@192.0.2.5/x", "http://192.0.2.6/x?token=abcdef", "a@b", "\u00e9t\u00e9.mp4"]
    seen, had = shown(*given)
    assert had == given
    assert [word.rstrip() for word in seen] == [
        "door=rtsp://***@192.0.2.5/x", "http://192.0.2.6/x?token=***", "a@b", "\u00e9t\u00e9.mp4",
    ]  # fmt: skip
    assert [len(word.encode()) for word in seen] == [len(word.encode()) for word in given]


def test_without_secrets_nothing_changes() -> None:
    assert shown("run", "rtsp://${LOGIN}@192.0.2.5/x")[0] == ["run", "rtsp://${LOGIN}@192.0.2.5/x"]
