"""`python -m tests`: prepare the environment, then run ruff, pyright and pytest.

With arguments it runs pytest alone and passes them on. `python -m tests attack` makes every attack
of tests/attack/ and tests/store/ as often as a full run does; words after it choose some by name.
`python -m tests gpu` runs tests/gpu/ on a pretend card, with torch for CUDA in its own environment;
words after it go to pytest. `python -m tests torch` runs the tests of the engine and the host with
every torch that users have, each in its own environment; words after it choose some by version.
"""

import sys

# Older versions must still read this file, so it has no f-string.
if sys.version_info < (3, 10):  # noqa: UP036
    message = "The tests need Python 3.10 or newer; {} is {}."
    sys.exit(message.format(sys.executable, sys.version.split()[0]))

from lib_accel.tools import setup_environment

if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        from tests.gpu import runner

        sys.exit(runner.main(sys.argv[2:]))
    if sys.argv[1:2] == ["torch"]:
        from tests import torch_versions

        sys.exit(torch_versions.main(sys.argv[2:]))
    setup_environment.ensure(setup_environment.TEST)
    from tests import checks

    sys.exit(checks.main(sys.argv[1:]))
