"""`python -m lib_accel`: prepare the environment, then run the command line."""

import sys

# Older versions must still read this file, so it has no f-string.
if sys.version_info < (3, 10):  # noqa: UP036
    message = "lib_accel needs Python 3.10 or newer; {} is {}."
    sys.exit(message.format(sys.executable, sys.version.split()[0]))

from lib_accel.tools import setup_environment

HELP_BEFORE_SET_UP = """usage: python -m lib_accel COMMAND

commands: demo, bench, gpu, cost, prebuild, store, doctor

Nothing is set up yet, so this is all the help there is. Each command first makes the environment
that it needs (in .venv, once, some minutes); then COMMAND --help tells more. Begin with:

  python -m lib_accel demo
"""

if __name__ == "__main__":
    arguments = sys.argv[1:]
    help_wanted = not arguments or bool({"-h", "--help", "--version"} & set(arguments))
    if (
        help_wanted
        and setup_environment.missing()
        and not (setup_environment.ROOT / setup_environment.MARK).exists()
    ):
        print(HELP_BEFORE_SET_UP)
        sys.exit(0 if arguments else 2)
    setup_environment.ensure("lib_accel", arguments)
    from lib_accel.tools.cli import main

    sys.exit(main(arguments))
