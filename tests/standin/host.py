"""A running stand-in of the WebUI: fresh modules, our script file, a tiny model, a user."""

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

from lib_accel.compile.speeds import Speeds

from ..tiny import TINY, Inputs, donor, inputs

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TREE, FORGE_TREE = HERE / "tree", HERE / "forge_tree"
OURS = "lib_accel.host"
NAMES = {"facts", "fastapi", "gradio", "ldm", "modules"}
NAMES |= {"backend", "modules_forge", "network", "networks"}
NAMES |= {f"network_{kind}" for kind in ("full", "lora", "lycoris", "oft")}

MIDDLE_QUERY = "middle_block.1.transformer_blocks.0.attn1.to_q"


def factors() -> dict[str, Tensor]:
    """Return a plain LoRA's tensors for a query of 64 channels."""
    return {"lora_up.weight": torch.randn(64, 4), "lora_down.weight": torch.randn(4, 64)}


def _is_standin(name: str) -> bool:
    return name.partition(".")[0] in NAMES or name == OURS or name.startswith(f"{OURS}.")


@contextlib.contextmanager
def in_place(*trees: Path) -> Iterator[None]:
    """Put the stand-in's modules in place and import lib_accel.host anew; undo both at the end.

    `trees`: folders of further modules.
    """
    import lib_accel

    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_standin(name)}
    attribute = vars(lib_accel).pop("host", None)
    paths = [*map(str, trees), str(TREE)]
    sys.path[:0] = paths
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if hasattr(sys.modules.get("networks"), "undo"):  # a test that failed has closed no host
            sys.modules["networks"].undo()
        for path in paths:
            sys.path.remove(path)
        for name in [n for n in sys.modules if _is_standin(n)]:
            del sys.modules[name]
        sys.modules.update(before)
        vars(lib_accel).pop("host", None)
        if attribute is not None:
            lib_accel.host = attribute  # type: ignore[attr-defined]


class Host:
    """A running stand-in. `flags` are command-line flags, ours among them."""

    def __init__(self, *flags: str):
        shared = self.module("modules.shared")
        load_file("preload", ROOT / "preload.py").preload(shared.parser)
        shared.parser.parse_args(flags, shared.cmd_opts)
        self.opts, self.networks = shared.opts, self.module("networks")
        self.pages = self.module("gradio")
        self.module("ldm.unet").th = self.module("modules.sd_hijack_unet").th
        unet = self.module("ldm.unet").UNetModel
        unet.forward = self.module("modules.sd_unet").create_unet_forward(unet.forward)
        self.networks.patch()
        witness = self.module("lib_accel.host.unet.witness").Witness
        self._is_due, witness.is_due = witness.is_due, lambda *_: False
        self.reload_ui()
        self.service._session.speeds = Speeds()  # without a host's own way: nothing is timed

    def module(self, name: str) -> Any:
        """Return a module of the stand-in or of lib_accel.host."""
        return importlib.import_module(name)

    @property
    def service(self) -> Any:
        """The service of lib_accel.host."""
        return self.module("lib_accel.host.service").service

    def witness(self) -> None:
        """Let steps be witnessed, which would run the WebUI's way too in tests of other things."""
        self.module("lib_accel.host.unet.witness").Witness.is_due = self._is_due

    def time_steps(self) -> None:
        """Let steps be timed, and what was measured decide; before a model is loaded."""
        self.service._session.speeds = Speeds(self.module("lib_accel.host.webui").host.attention)

    def close(self) -> None:
        """End the WebUI: nothing of it goes on."""
        self.module("modules.script_callbacks").script_unloaded_callback()
        self.networks.undo()

    def reload_ui(self, *others: Callable[[], type]) -> None:
        """Start the pages, or "Reload UI": scripts are loaded anew, modules and models stay.

        `others`: further script files, as functions that return their script class.
        """
        callbacks, scripts = self.module("modules.script_callbacks"), self.module("modules.scripts")
        callbacks.script_unloaded_callback()
        callbacks.clear_callbacks()
        scripts.scripts.clear()
        self.pages.shown.clear()
        callbacks.on_model_loaded(self.networks.assign_network_names_to_compvis_modules)
        scripts.load_file(ROOT / "scripts" / "accel.py")
        for other in others:
            scripts.add_classes({"other": other()})
        callbacks.before_ui_callback()
        self.tabs = callbacks.ui_tabs_callback()
        self.app = self.module("fastapi").FastAPI()
        callbacks.app_started_callback(None, self.app)

    def load(self, seed: int = 0) -> nn.Module:
        """Load a model with weights of its own. Returns its UNet."""
        unet = self.new_unet(seed)
        self.module("modules.sd_models").load_model(unet)
        return unet

    def new_unet(self, seed: int = 0) -> nn.Module:
        """Return a UNet that nobody knows of."""
        unet = self.module("ldm.unet").UNetModel(TINY)
        unet.load_state_dict(donor(TINY, seed).state_dict())
        return unet.eval()

    @property
    def model(self) -> Any:
        """The loaded model."""
        return self.module("modules.sd_models").model_data.sd_model

    @property
    def unet(self) -> Any:
        """Its UNet."""
        return self.model.model.diffusion_model

    # -- what is computed

    @torch.no_grad()
    def call(self, given: Inputs | None = None, unet: nn.Module | None = None) -> Tensor:
        """Call the loaded UNet as the sampler does, or another UNet."""
        x, timesteps, context, _ = given or inputs()
        if unet is not None:
            return unet(x, timesteps, context=context)
        return self.model.apply_model(x, timesteps, {"c_crossattn": [context]})

    def plain(self, given: Inputs | None = None, seed: int = 0) -> Tensor:
        """Make the same call of an equal UNet that was never accelerated."""
        return self.call(given, self.plain_unet(seed))

    def plain_unet(self, seed: int = 0) -> nn.Module:
        """Return a UNet with the names that LoRAs go by, which is never accelerated."""
        unet = self.new_unet(seed)
        for name, module in unet.named_modules(prefix="diffusion_model"):
            module.network_layer_name = name.replace(".", "_")
        return unet

    def image(self, *networks: Any, **options: Any) -> Any:
        """Run a job with these networks in its prompt. Returns it, with its batches as `made`."""
        processing = self.module("modules.processing")
        x, timesteps, context, _ = inputs()
        p = processing.StableDiffusionProcessing(x, timesteps, context, list(networks), **options)
        p.made = processing.process_images(p)
        return p

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[nn.Module], set[str]]]:
        """Yield a function that names the layers of a network that its own code computed.

        These are the ones that were not accelerated, of those that can be: see `unit_layers`.
        """
        computed: set[int] = set()
        self.networks.computed = computed

        def unaccelerated(network: nn.Module) -> set[str]:
            return {
                name
                for name in unit_layers(network)
                if any(id(m) in computed for m in network.get_submodule(name).modules())
            }

        try:
            yield unaccelerated
        finally:
            self.networks.computed = None

    # -- what a user wants

    def network(self, name: str, layers: dict[str, dict[str, Tensor]]) -> Any:
        """Return a loaded LoRA: the tensors of its file by the dotted name of their layer."""
        net, types = self.module("network").Network(name, None), self.networks.module_types
        for layer, parts in layers.items():
            key = f"diffusion_model_{layer.replace('.', '_')}"
            weights = self.module("network").NetworkWeights(
                key, key, parts, self.unet.get_submodule(layer)
            )
            net.modules[key] = next(m for t in types if (m := t.create_module(net, weights)))
        return net

    @torch.no_grad()
    def merge(self, layer: Any) -> None:
        """Let the Lora extension's own code merge into one layer."""
        self.networks.network_apply_weights(layer)

    def want(self, *networks: Any) -> None:
        """Want these networks, as a prompt with them does before its first call."""
        self.networks.loaded_networks[:] = networks

    # -- how it behaves, for tests/webui/test_standin.py

    def listen(self) -> None:
        """Load the listener of `facts` too, as one more extension."""
        self._facts = load_file("facts", HERE / "facts" / "__init__.py")
        self.reload_ui(self._facts.listen)

    def facts(self, which: str) -> Any:
        """Return a group of facts about this stand-in."""
        return self._facts.find(which)

    # -- what the extension says

    def status(self) -> dict[str, Any]:
        """Return the answer of `GET /accel/v1/status`."""
        code, answer = self.app.ask("GET", "/accel/v1/status")
        assert code == 200, answer
        return answer

    def counters(self) -> dict[str, int]:
        """Return the counters of the status."""
        return self.status()["counters"]


@contextlib.contextmanager
def counted(host: Host, **expected: int) -> Iterator[None]:
    """Check that the named counters rise by exactly these numbers."""
    before = host.counters()
    yield
    after = host.counters()
    assert {name: after[name] - before[name] for name in expected} == expected


def load_file(name: str, path: Path) -> Any:
    """Import a file as a top-level module, or as a package where it is an `__init__.py`."""
    package = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=package)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if package:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def unit_layers(network: nn.Module) -> set[str]:
    """Return the names of the layers of a network that can be compiled."""
    compiled = ("ResBlock", "SpatialTransformer")
    blocks = {n for n, m in network.named_modules() if type(m).__name__ in compiled}
    return blocks | ({"out"} if hasattr(network, "out") else set())


def own_attributes(network: nn.Module) -> dict[str, dict[str, object]]:
    """Return the attributes of each module instance: what was put on one shows here."""
    return {name: dict(vars(module)) for name, module in network.named_modules()}


def left_behind(before: dict[str, dict[str, object]], network: nn.Module) -> list[str]:
    """Return the attributes that were added, removed or replaced since `own_attributes`.

    The marks of the Lora extension are left out.
    """
    after = own_attributes(network)
    assert before.keys() == after.keys()
    return [
        f"{name}.{attribute}"
        for name in before
        for attribute in {*before[name], *after[name]}
        if not attribute.startswith("network_")
        and before[name].get(attribute, before) is not after[name].get(attribute, after)
    ]
