"""Count one UNet call by class of kernel: run in the laboratory, it prints one JSON object.

Arguments: a JSON object {"family": "sd1", "size": 512, "batch": 2, "tokens": 77,
"dtype": "float16", "backends": ["aoti", "eager"]}. Code is generated now, unit by unit, and
replayed (generated.py); everything else runs as it would on a card.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ...compile.backends.aoti.compiler import compile_unit
from ...compile.session import Choice, Session
from ...compile.units import UnitFn, describe
from ...config import Config
from ...errors import AccelError
from ...model import presets
from ...model.architecture import Architecture
from ...model.specs import Spec
from ...model.unet import UNet
from ...runtime.engine import Engine
from ..bench.stock import stock_unet
from .generated import GeneratedCode
from .launches import Counter, Launch

CARD = torch.device("cuda:0")
CALLS = 3
"""The last one is counted: what is computed once for an image falls out of it."""


@dataclass(frozen=True)
class Plan:
    architecture: Architecture
    size: int
    batch: int
    tokens: int
    dtype: torch.dtype

    def network(self) -> nn.Module:
        """Return a UNet with weights on the card, of no particular values."""
        network = UNet(self.architecture).to(self.dtype)
        return network.to_empty(device=CARD).requires_grad_(False)

    def inputs(self) -> tuple[Tensor, ...]:
        """Return x, timesteps, context and, where it is taken, y: a new prompt at every step."""
        a, side = self.architecture, self.size // 8
        context_dim = next(s.context_dim for _, s in a.layers() if hasattr(s, "context_dim"))
        shapes = [(a.in_channels, side, side), (), (self.tokens, context_dim)]
        if a.adm_channels is not None:
            shapes.append((a.adm_channels,))
        return tuple(torch.empty(self.batch, *s, dtype=self.dtype, device=CARD) for s in shapes)


def count(call: Callable[..., Any], plan: Plan, counter: Counter) -> list[Launch]:
    """Return the launches of a later call."""
    for _ in range(CALLS):
        inputs = plan.inputs()
        counter.launches = []
        with counter, torch.no_grad():
            call(*inputs)
    return counter.launches


def generated_code(unit: Spec, dtype: torch.dtype) -> GeneratedCode:
    """Generate the code of a unit as `compile_unit` does, up to where a C++ compiler would run."""
    import torch._inductor

    package = torch._inductor.aoti_compile_and_package

    class Generated(Exception):
        pass

    def only_generate(*args: Any, package_path: str, inductor_configs: Any, **more: Any) -> None:
        options = {**inductor_configs, "aot_inductor.package_cpp_only": True}
        package(*args, package_path=package_path, inductor_configs=options, **more)
        with zipfile.ZipFile(package_path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".wrapper.cpp")]
            raise Generated(archive.read(names[0]).decode())

    with (
        TemporaryDirectory() as folder,
        mock.patch.object(torch._inductor, "aoti_compile_and_package", only_generate),
    ):
        try:
            compile_unit(unit, dtype, CARD, Path(folder, "unit"))
        except Generated as generated:
            return GeneratedCode(str(generated))
    raise AccelError(f"no code was generated for {describe(unit)}")


class Replayed(Session):
    """Serves the units of any target by replaying code that is generated for it."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter

    name = "aoti"

    def choose(self, *args: Any, **kwargs: Any) -> Choice:
        return Choice(self, ())  # type: ignore[arg-type]

    def backend(self, name: str) -> Any:
        return self

    def kept_bytes(self, target: Any, store: Any) -> None:
        return None

    def make(self, target: Any, store: Any) -> dict[Spec, UnitFn]:
        """Generate the code of every unit of `target`, and say how far that is."""
        units = {}
        for n, unit in enumerate(target.units, 1):
            began = time.monotonic()
            code = generated_code(unit, target.dtype)
            units[unit] = self._unit(code)
            took = time.monotonic() - began
            _say(f"generating code: {n} of {len(target.units)}, {describe(unit)}, {took:.0f} s")
        return units

    def _unit(self, code: GeneratedCode) -> UnitFn:
        return lambda inputs: code(inputs, self._counter.launched)[0]


def _aoti(plan: Plan, counter: Counter) -> Callable[..., Any]:
    return _engine(plan, "aoti", Replayed(counter))


def _eager(plan: Plan, counter: Counter) -> Callable[..., Any]:
    return _engine(plan, "eager", Session())


def _stock(plan: Plan, counter: Counter) -> Callable[..., Any]:
    return stock_unet(plan.architecture, dict(plan.network().named_parameters()))


def _engine(plan: Plan, backend: str, session: Session) -> Callable[..., Any]:
    config = Config(backend=backend, graphs=False, store=Path(os.devnull, "none"))
    engine = Engine(plan.network(), config, session=session)
    engine.prepare()
    return engine.compute


BACKENDS: dict[str, Callable[[Plan, Counter], Callable[..., Any]]] = {
    "aoti": _aoti,
    "eager": _eager,
    "stock": _stock,
}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(task: dict[str, Any]) -> None:
    """Count for every backend of the task and print the launches."""
    plan = Plan(
        presets.PRESETS[task["family"]](),
        task["size"],
        task["batch"],
        task["tokens"],
        getattr(torch, task["dtype"]),
    )
    found = {}
    with torch.backends.cudnn.flags(enabled=True):
        for name in task["backends"]:
            _say(f"counting {name}")
            counter = Counter(Path(os.environ["PRETEND_LOG"]))
            found[name] = [vars(launch) for launch in count(BACKENDS[name](plan, counter), plan, counter)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
