"""The entry point of `streamdet` and `python -m streamdet`: prepares the process before anything else is imported."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # With -m the present folder comes first, and a file there that is named like a module would be run.
    del sys.path[0]

import os
import signal


def main() -> None:
    """Runs the command line.

    Importing it takes a while. Until the daemon can reload, a SIGHUP waits; after it has stopped, one is ignored: at no
    moment does it end `streamdet run`. Other commands end with their terminal, as programs do.
    """
    if sys.argv[1:2] == ["run"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Every Python started from here, by us or by a library, would look for modules in the present folder first.
    os.environ["PYTHONSAFEPATH"] = "1"

    from streamdet.cli import main as run_command_line  # noqa: PLC0415 - only now

    run_command_line()


if __name__ == "__main__":
    main()
