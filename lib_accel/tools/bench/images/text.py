"""The text encoders of the families, of random weights: those of transformers.

The extension leaves text encoders alone, so our rows have the WebUI's: attention without a fused
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ....errors import BackendUnavailable

TOKENS = 77
"""Of a prompt, with its beginning and end."""
VOCABULARY = 49408

_SIZES = {
    768: ((768, 12),),  # SD1: CLIP ViT-L
    1024: ((1024, 23),),  # SD2: OpenCLIP ViT-H up to its last layer but one
    1280: ((1280, 32),),  # SDXL's refiner: OpenCLIP ViT-bigG
    2048: ((768, 12), (1280, 32)),  # SDXL: both
}
"""Width and layers of the encoders, by the width of what the UNet is given."""


class TextEncoder(nn.Module):
    """Encodes prompts, `[B, 77]` token numbers -> `[B, 77, context_dim]`.

    `sdpa` chooses fused attention; `like` is another one to share the weights of. Raises
    BackendUnavailable where transformers is missing, or no encoder has that width.
    """

    def __init__(self, context_dim: int, sdpa: bool, like: TextEncoder | None = None):
        super().__init__()
        sizes = _SIZES.get(context_dim)
        if sizes is None:
            known = ", ".join(map(str, _SIZES))
            raise BackendUnavailable(f"no text encoder is {context_dim} wide; expected {known}")
        attention = "sdpa" if sdpa else "eager"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoders = nn.ModuleList(_clip(w, layers, attention) for w, layers in sizes)
        if like is not None:
            self.load_state_dict(like.state_dict(), assign=True)
        self.requires_grad_(False).eval()

    def forward(self, ids: Tensor) -> Tensor:
        """Return `[B, 77, context_dim]`."""
        out = [encoder(input_ids=ids, return_dict=False)[0] for encoder in self.encoders]
        return torch.cat(out, dim=-1)


def _clip(width: int, layers: int, attention: str) -> nn.Module:
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError as e:
        raise BackendUnavailable(f"transformers is not installed ({e})") from e
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )
    config._attn_implementation = attention
    return CLIPTextModel(config)


def prompts(number: int, device: torch.device) -> Tensor:
    """Return the tokens of an empty prompt and of the prompt of that number: `[2, 77]`."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.full((2, TOKENS), VOCABULARY - 1)
    ids[1] = torch.randint(VOCABULARY - 2, (TOKENS,), generator=generator)
    ids[:, 0], ids[:, -1] = VOCABULARY - 2, VOCABULARY - 1
    return ids.to(device)


def encoders(context_dim: int, device: torch.device, dtype: torch.dtype) -> Sequence[TextEncoder]:
    """Return one with plain and one with fused attention, of the same weights. Raises as above."""
    plain = TextEncoder(context_dim, sdpa=False).to(device, dtype)
    return plain, TextEncoder(context_dim, sdpa=True, like=plain)
