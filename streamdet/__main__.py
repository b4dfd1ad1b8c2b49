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
    moment does it end `streamdet run`. Other commands end with their terminal, as programs do. Until the command line
    can handle a Ctrl-C, it ends the process at once, and not with a traceback of what was being imported.
    """
    if sys.argv[1:2] == ["run"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Every Python started from here, by us or by a library, would look for modules in the present folder first.
    os.environ["PYTHONSAFEPATH"] = "1"

    is_python_s = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it may be ignored
    if is_python_s:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from streamdet.cli import main as run_command_line  # noqa: PLC0415 - only now

    if is_python_s:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command_line()


if __name__ == "__main__":
    main()
