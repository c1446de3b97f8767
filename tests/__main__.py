"""`python -m tests`: prepare the environment, then run ruff, pyright and pytest.

With arguments it runs pytest alone and passes them on.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (older versions must still read this file)
    version = sys.version.split()[0]
    sys.exit(f"The tests need Python 3.10 or newer; {sys.executable} is {version}.")

from lib_accel.tools import setup_environment

if __name__ == "__main__":
    setup_environment.ensure("tests", sys.argv[1:], setup_environment.TEST)
    from tests import checks

    sys.exit(checks.main(sys.argv[1:]))
