"""The stand-in put in place: fresh modules, our script file loaded as the WebUI loads it, a tiny model, and what a user does with it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..tiny import TINY, Inputs, donor, inputs

ROOT = Path(__file__).resolve().parents[2]
TREE = Path(__file__).resolve().parent / "tree"
NAMES = {
    "modules",
    "ldm",
    "network",
    "network_lora",
    "network_full",
    "networks",
    "gradio",
    "fastapi",
}
HOST_SIDE = "lib_accel.host"


MIDDLE_QUERY = "middle_block.1.transformer_blocks.0.attn1.to_q"


def factors() -> dict[str, Tensor]:
    """A plain LoRA's parts for a query of 64 channels."""
    return {"lora_up.weight": torch.randn(64, 4), "lora_down.weight": torch.randn(4, 64)}


def _ours(name: str) -> bool:
    return name.partition(".")[0] in NAMES or name == HOST_SIDE or name.startswith(f"{HOST_SIDE}.")


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Inside, those names are the stand-in's and the host side is imported anew; outside, everything is as it was."""
    import lib_accel

    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _ours(name)}
    attribute = vars(lib_accel).pop("host", None)
    sys.path.insert(0, str(TREE))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(TREE))
        for name in [n for n in sys.modules if _ours(n)]:
            del sys.modules[name]
        sys.modules.update(before)
        vars(lib_accel).pop("host", None)
        if attribute is not None:
            lib_accel.host = attribute  # type: ignore[attr-defined]


class Host:
    """A running stand-in. `flags` are command-line flags, ours among them."""

    def __init__(self, *flags: str):
        shared = self.module("modules.shared")
        _load_file(ROOT / "preload.py").preload(shared.parser)
        shared.parser.parse_args(flags, shared.cmd_opts)
        self.opts, self.networks, self.pages = (
            shared.opts,
            self.module("networks"),
            self.module("gradio"),
        )
        self.module("ldm.unet").th = self.module("modules.sd_hijack_unet").th
        unet = self.module("ldm.unet").UNetModel
        unet.forward = self.module("modules.sd_unet").create_unet_forward(unet.forward)
        self.networks.patch()
        self.reload_ui()

    def module(self, name: str) -> Any:
        return importlib.import_module(name)

    @property
    def service(self) -> Any:
        return self.module("lib_accel.host.service").service

    def close(self) -> None:
        """The WebUI's end: nothing may go on after it."""
        self.module("modules.script_callbacks").script_unloaded_callback()
        self.networks.undo()

    def reload_ui(self, *others: Callable[[], type]) -> None:
        """Start the pages, or "Reload UI": scripts are loaded anew, modules and models stay. `others`: script files, as functions."""
        callbacks, scripts = self.module("modules.script_callbacks"), self.module("modules.scripts")
        callbacks.script_unloaded_callback()
        callbacks.clear_callbacks()
        scripts.scripts.clear()
        self.pages.shown.clear()
        callbacks.on_model_loaded(self.networks.assign_network_names_to_compvis_modules)
        scripts.load_file(ROOT / "scripts" / "accel.py")
        for other in others:
            scripts.add_classes({"other": other()})
        self.tabs = callbacks.ui_tabs_callback()
        self.app = self.module("fastapi").FastAPI()
        callbacks.app_started_callback(None, self.app)

    def load(self, seed: int = 0) -> nn.Module:
        """A model with weights of its own; returns its UNet."""
        unet = self.new_unet(seed)
        self.module("modules.sd_models").load_model(unet)
        return unet

    def new_unet(self, seed: int = 0) -> nn.Module:
        unet = self.module("ldm.unet").UNetModel(TINY)
        unet.load_state_dict(donor(TINY, seed).state_dict())
        return unet.eval()

    @property
    def model(self) -> Any:
        return self.module("modules.sd_models").model_data.sd_model

    @property
    def unet(self) -> Any:
        return self.model.model.diffusion_model

    # -- what is computed

    @torch.no_grad()
    def call(self, given: Inputs | None = None, unet: nn.Module | None = None) -> Tensor:
        """One call of the UNet, as the sampler makes it: of the loaded one, or of another."""
        x, timesteps, context, _ = given or inputs()
        if unet is not None:
            return unet(x, timesteps, context=context)
        return self.model.apply_model(x, timesteps, {"c_crossattn": [context]})

    def plain(self, given: Inputs | None = None, seed: int = 0) -> Tensor:
        """The same call of an equal UNet that nobody has taken over."""
        unet = self.new_unet(seed)
        for name, module in unet.named_modules(prefix="diffusion_model"):
            module.network_layer_name = name.replace(".", "_")
        return self.call(given, unet)

    def image(self, *networks: Any, **options: Any) -> Any:
        """A job with these networks in its prompt. Returns it, with the batches as `made`."""
        processing = self.module("modules.processing")
        x, timesteps, context, _ = inputs()
        p = processing.StableDiffusionProcessing(x, timesteps, context, list(networks), **options)
        p.made = processing.process_images(p)
        return p

    # -- what a user wants

    def network(self, name: str, layers: dict[str, dict[str, Tensor]]) -> Any:
        """A network in memory: the parts of a file, by the dotted name of the layer each is for."""
        net = self.module("network").Network(name, None)
        types = (
            self.module("network_lora").ModuleTypeLora(),
            self.module("network_full").ModuleTypeFull(),
        )
        for layer, parts in layers.items():
            key = f"diffusion_model_{layer.replace('.', '_')}"
            weights = self.module("network").NetworkWeights(
                key, key, parts, self.unet.get_submodule(layer)
            )
            net.modules[key] = next(
                m for t in types if (m := t.create_module(net, weights)) is not None
            )
        return net

    @torch.no_grad()
    def merge(self, layer: Any) -> None:
        """The Lora extension's own code, for one layer."""
        self.networks.network_apply_weights(layer)

    def want(self, *networks: Any) -> None:
        """What a prompt with these networks does, before its first call."""
        self.networks.loaded_networks[:] = networks

    # -- how it behaves, for tests/webui/test_standin.py

    def hear(self) -> None:
        """Load the listener too, as one more extension."""
        self._facts = {
            name: _load_file(Path(__file__).parent / f"{name}.py")
            for name in ("facts", "lora_facts", "page_facts")
        }
        self.reload_ui(self._facts["facts"].listen)

    def facts(self, which: str) -> Any:
        f = self._facts
        groups = {
            "webui": f["facts"].webui,
            "job": f["facts"].job,
            "lora": f["lora_facts"].lora,
            "pages": f["page_facts"].pages,
        }
        return groups[which]()

    # -- what we say

    def status(self) -> dict[str, Any]:
        code, answer = self.app.ask("GET", "/accel/v1/status")
        assert code == 200, answer
        return answer

    def counters(self) -> dict[str, int]:
        return self.status()["counters"]


@contextlib.contextmanager
def counted(host: Host, **expected: int) -> Iterator[None]:
    """The counters named must rise by just so much."""
    before = host.counters()
    yield
    after = host.counters()
    assert {name: after[name] - before[name] for name in expected} == expected


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"standin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def own_attributes(network: nn.Module) -> dict[str, dict[str, object]]:
    """Everything that stands on each module itself: what was put there and not taken away shows here."""
    return {name: dict(vars(module)) for name, module in network.named_modules()}


def left_behind(before: dict[str, dict[str, object]], network: nn.Module) -> list[str]:
    """Attributes that are there and were not, are gone, or are another object. A LoRA's marks are the Lora extension's business."""
    after = own_attributes(network)
    assert before.keys() == after.keys()
    return [
        f"{name}.{attribute}"
        for name in before
        for attribute in {*before[name], *after[name]}
        if not attribute.startswith("network_")
        and before[name].get(attribute, before) is not after[name].get(attribute, after)
    ]
