"""An extension for tests: computes the facts of tests/standin/facts in a live WebUI."""

import importlib.util
import sys
import traceback
from pathlib import Path

from modules import script_callbacks

FACTS = Path(__file__).resolve().parents[3] / "standin" / "facts"


def _load_package(name, folder):
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


facts = _load_package("standin_facts", FACTS)
Listener = facts.listen()  # the WebUI finds scripts by class


def answer(which: str):
    """Return the facts of one group; a traceback where they could not be found."""
    try:
        return {"facts": facts.find(which)}
    except Exception:  # noqa: BLE001  the test shows it
        return {"failed": traceback.format_exc()}


script_callbacks.on_app_started(
    lambda _, app: app.add_api_route("/standin-probe/{which}", answer, methods=["GET"])
)
