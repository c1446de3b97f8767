"""`python3 -m lib_accel`, or `python3 PATH/lib_accel` from any folder: run the command line."""

import os
import signal
import sys

# Older versions must still read this file, so it has no f-string.
if sys.version_info < (3, 10):  # noqa: UP036
    message = "lib_accel needs Python 3.10 or newer; {} is {}."
    sys.exit(message.format(sys.executable, sys.version.split()[0]))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # until there is more to do than that
    if not __package__:  # called by its path
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120

    from lib_accel.tools import terminal

    terminal.end_on_interrupt()

    from lib_accel.tools.cli import main

    sys.exit(main(set_up=True))
