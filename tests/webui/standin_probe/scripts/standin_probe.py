"""An extension for tests alone: computes the facts of tests/standin in a live WebUI."""

import importlib.util
import sys
import traceback
from pathlib import Path

from modules import script_callbacks


def _load(name):
    spec = importlib.util.spec_from_file_location(
        name, Path(__file__).resolve().parents[3] / "standin" / f"{name}.py"
    )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


facts, lora_facts, page_facts = map(_load, ("facts", "lora_facts", "page_facts"))
Listener = facts.listen()  # the WebUI finds scripts by class


def answer(which: str):
    """The facts of one group; a traceback where they could not be found out."""
    groups = {
        "webui": facts.webui,
        "lora": lora_facts.lora,
        "pages": page_facts.pages,
        "job": facts.job,
    }
    try:
        return {"facts": groups[which]()}
    except Exception:  # noqa: BLE001  shown by the test
        return {"failed": traceback.format_exc()}


script_callbacks.on_app_started(
    lambda _, app: app.add_api_route("/standin-probe/{which}", answer, methods=["GET"])
)
