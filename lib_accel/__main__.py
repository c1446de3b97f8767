"""`python -m lib_accel`: make sure of the environment, then hand over to the command line."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (this file must also load in the Pythons it turns away)
    sys.exit(
        f"lib_accel needs Python 3.10 or newer; this is {sys.version.split()[0]} ({sys.executable})."
    )

from lib_accel.tools import bootstrap

BEFORE_SET_UP = """usage: python -m lib_accel COMMAND

commands: demo, bench, gpu, prebuild, store, doctor

Nothing is set up here yet, so this is all the help there is. Any command makes the environment it needs first (in .venv,
once, some minutes) and says what it does; COMMAND --help then tells more. Begin with:

  python -m lib_accel demo
"""

if __name__ == "__main__":
    arguments = sys.argv[1:]
    help_wanted = not arguments or bool({"-h", "--help", "--version"} & set(arguments))
    if help_wanted and not bootstrap.is_set_up():
        print(BEFORE_SET_UP)
        sys.exit(0 if arguments else 2)
    bootstrap.ensure("lib_accel", arguments)
    from lib_accel.tools.cli import main

    sys.exit(main(arguments))
