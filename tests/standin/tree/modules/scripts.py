"""Scripts of extensions: classes in the files that are loaded, called at stages of each job."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

AlwaysVisible = object()
scripts: list[Script] = []
scripts_data: list[Any] = []  # of each script class that was loaded: also `script_class`, `module`


class Script:
    def title(self) -> str:
        raise NotImplementedError

    def show(self, is_img2img: bool) -> object:
        return True

    def ui(self, is_img2img: bool) -> Any:
        """Build the controls; their values become `args` below."""

    def before_process(self, p: Any, *args: Any) -> None: ...

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None: ...

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None: ...

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None: ...


def load_file(path: Path) -> None:
    """Run a script file anew and keep an instance of each script class in it."""
    spec = importlib.util.spec_from_file_location(path.name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    add_classes(vars(module))


def add_classes(names: dict[str, Any]) -> None:
    for value in names.values():
        if isinstance(value, type) and issubclass(value, Script):
            script = value()
            assert script.show(False) is AlwaysVisible
            assert not script.ui(False)
            scripts.append(script)


def call(method: str, p: Any, *args: Any, **kwargs: Any) -> None:
    for script in scripts:
        getattr(script, method)(p, *args, **kwargs)
