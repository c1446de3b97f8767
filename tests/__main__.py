"""`python -m tests`: ruff, pyright and pytest, in an environment made for it. With arguments: pytest alone, with them."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (this file must also load in the Pythons it turns away)
    sys.exit(
        f"lib_accel needs Python 3.10 or newer; this is {sys.version.split()[0]} ({sys.executable})."
    )

from lib_accel.tools import bootstrap

if __name__ == "__main__":
    bootstrap.ensure("tests", sys.argv[1:], groups=("run", "test"))
    from tests import checks

    sys.exit(checks.main(sys.argv[1:]))
