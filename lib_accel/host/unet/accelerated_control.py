"""A ControlNet or its like in the WebUI, computed by the UNet's compiled code."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from torch import Tensor, nn

from ...errors import BadWeights
from ...runtime.accelerated import set_owner, take_owner
from ...runtime.attributes import Weakly
from ...runtime.bound.binding import CompiledLayer
from ...runtime.control_network import ControlNetwork
from ...runtime.engine import Engine
from .. import webui
from .inspection import Inspector
from .layer_forwards import Both, LayerForwards
from .witness import Witness


class AcceleratedControl:
    """A control network that runs on the compiled units of `engine`, from `install` to `remove`.

    It does not keep the network alive. Raises UnsupportedArchitecture where the network has none of
    a UNet's layers.
    """

    network = Weakly()

    def __init__(self, network: nn.Module, engine: Engine, witness: Witness):
        """`witness` is that of the UNet."""
        self.network, self.engine = network, engine
        self._control = ControlNetwork(network, engine)
        specs = self._control.specs
        self._inspector = Inspector(network, specs)
        self.witness = witness.beside(network, self._inspector)
        self._layers = LayerForwards(network, list(specs), engine, self._begin_pass, self._explain)
        self._own = vars(network)
        self._at_the_end = weakref.finalize(network, self.remove)
        self._at_the_end.atexit = False
        self._explained: set[str] = set()

    def install(self) -> None:
        """Put our forwards on the network's layers. Idempotent."""
        set_owner(self.network, self)
        self._layers.install()

    def remove(self) -> None:
        """Leave the network exactly as it was found."""
        self._at_the_end.detach()
        self._layers.remove()
        take_owner(self._own, self)
        self._control.close()

    def _begin_pass(
        self, h: Tensor, side: Tensor | None
    ) -> tuple[Mapping[str, CompiledLayer], Both | None]:
        self.engine.memory.make_room_for_call(h, by_others=True)
        if not webui.enabled() or webui.blocked_by(self.network) or self.witness.why_not(h):
            return {}, None
        try:
            compiled = self._control.compiled_layers()
        except BadWeights as error:  # mixed or unloaded: the network's own code computes it
            self._explain(str(error))
            return {}, None
        changed, both = self._inspector.look()[0], None
        if compiled and self.witness.is_due(None, h, side, self.engine.units):
            both = self.witness.layer_by_layer()
        own = {**changed, **self.witness.distrusted}
        return {name: layer for name, layer in compiled.items() if name not in own}, both

    def _explain(self, reason: str) -> None:
        """Print a reason the first time."""
        if reason not in self._explained:
            self._explained.add(reason)
            webui.say(f"a control model is not accelerated: {reason}")
