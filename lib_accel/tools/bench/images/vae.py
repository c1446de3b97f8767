"""Half a VAE by itself: the WebUI's way, those of others and ours, one a row, timed in turn."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ....compile.jobs import Job
from ....compile.session import Session
from ....config import Config
from ....errors import BackendUnavailable
from ....model.precision import exact_products, relative_error, wider
from ....model.random_weights import random_weight
from ....model.vae.network import DECODER, Half, Network
from ....runtime.vae import VaeEngine
from ..measure import Call, Row, interleave, machine_of, matmul_rate, operations, or_left_out, timed
from ..peers import compiled_call, openvino_call, widened
from ..stock import stock_vae
from ..table import line
from .peers import ReferenceVae

PEERS = ("reference", "reference+sdpa", "compile", "openvino")
VARIANTS = ("stock", "stock+sdpa", *PEERS, "eager", "jit", "kernels", "aoti")


@dataclass(frozen=True)
class Plan:
    """What one run measures. `size` in pixels, `channels` those of the VAE's widest level."""

    kind: str  # DECODER or ENCODER
    device: torch.device
    dtype: torch.dtype
    config: Config
    variants: Sequence[str]
    size: int = 512
    batch: int = 1
    rounds: int = 5
    channels: int = 128


def measure(
    plan: Plan, say: Callable[[str], object], wait: Callable[[Job], object] = Job.wait
) -> dict[str, Any]:
    """Build every row, time all in turn, and return the result, ready for JSON."""
    half, session = Half.preset(plan.kind, plan.channels), Session()
    rows, calls = {name: Row(name) for name in plan.variants}, dict[str, Call]()
    with torch.no_grad():
        x = _input(plan)
        reference = _precise(half, plan, x)
        for name, row in rows.items():
            say(f"preparing {name} ...")
            with or_left_out(row, say):
                make = functools.partial(call_of, name, half, plan, session, x, wait)
                row.compile_s, call = timed(make, plan.device)
                row.error = relative_error(call(), reference)
                calls[name] = call
        rates = [matmul_rate(plan.dtype, plan.device)]
        interleave(calls, rows, plan.device, plan.rounds, lambda: None)
        rates.append(matmul_rate(plan.dtype, plan.device))
    needed, rate = operations(Network(half).run, x), sum(rates) / 2
    return {
        "date": datetime.date.today().isoformat(),
        "what": half.name,
        "device": plan.device.type,
        "size": plan.size,
        "batch": plan.batch,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "rounds": plan.rounds,
        "machine": machine_of(plan.device),
        "flops": needed,
        "floor_s": needed / rate,
        "rows": [row.to_dict() for row in rows.values()],
    }


def _input(plan: Plan) -> Tensor:
    decodes = plan.kind == DECODER
    side = plan.size // 8 if decodes else plan.size
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(plan.batch, 4 if decodes else 3, side, side, generator=generator)
    return x.to(plan.device, plan.dtype)


def _parameters(half: Half, plan: Plan) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(
            random_weight(name, torch.Size(shape), generator).to(plan.device, plan.dtype),
            requires_grad=False,
        )
        for name, shape in half.shapes().items()
    }


def donor(parameters: Mapping[str, nn.Parameter]) -> nn.Module:
    """Return a module that has these parameters by their dotted names, and computes nothing."""
    root = nn.Module()
    for name, parameter in parameters.items():
        *homes, own = name.split(".")
        module = root
        for home in homes:
            if home not in module._modules:
                module.add_module(home, nn.Module())
            module = module.get_submodule(home)
        module.register_parameter(own, parameter)
    return root


def _precise(half: Half, plan: Plan, x: Tensor) -> Tensor:
    network = Network(half).adopt(_parameters(half, plan))
    network.compute_dtype = wide = wider(plan.dtype, plan.device)
    with exact_products(plan.device):
        return network.run(x.to(wide))


def call_of(
    name: str, half: Half, plan: Plan, session: Session, x: Tensor, wait: Callable[[Job], object]
) -> Call:
    """Return the call of one row, which reads `x` anew each time.

    Raises AccelError where it cannot be made.
    """
    parameters = _parameters(half, plan)
    if name in PEERS:
        return _of_peer(name, half, parameters, x)
    if name.startswith("stock"):
        network = stock_vae(half, parameters, sdpa=name.endswith("sdpa"))
        return lambda: network.run(x)
    engine = VaeEngine(donor(parameters), replace(plan.config, backend=name), session, plan.device)
    engine.prepare()
    if engine.job is not None:
        wait(engine.job)
        engine.take_up()
    if engine.status.backend != name:
        raise BackendUnavailable(engine.status.reason or f"{name} does not serve here")
    return lambda: engine.compute(x)


def _of_peer(name: str, half: Half, parameters: dict[str, nn.Parameter], x: Tensor) -> Call:
    if name == "openvino":
        if x.device.type != "cpu":
            raise BackendUnavailable("OpenVINO is compared on the CPU only")
        return openvino_call(ReferenceVae(half, widened(parameters), sdpa=True), x.dtype, [x])
    network = ReferenceVae(half, parameters, sdpa=name != "reference")
    return compiled_call(network, [x]) if name == "compile" else lambda: network(x)


def table(r: Mapping[str, Any]) -> str:
    """Return a result of `measure` as Markdown."""
    m = r["machine"]
    lines = [
        f"{r['what']}, {r['size']}x{r['size']}, batch {r['batch']}, {r['dtype']}; "
        f"{m['device_name']}, {m['threads']} threads, torch {m['torch']}; {r['date']}.",
        f"{r['flops'] / 1e12:.3f} TFLOP; by the matmul rate measured before and after, the floor "
        f"is {r['floor_s']:.4g} s.",
        "",
        f"| variant | s (median of {r['rounds']}) | min - max | of the floor | built in s "
        "| peak GiB | error |",
        "| --- " * 7 + "|",
    ]
    lines += (line(row, lambda s: (f"{s / r['floor_s']:.2f}x",), 1) for row in r["rows"])
    return "\n".join(lines)
