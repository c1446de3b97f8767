"""Random files of every network type that the WebUI's Lora extension reads.

Layers have the checkpoint's names (`lora_unet_input_blocks_1_1_...`), which the extension takes for
every architecture. Layouts: kohya-ss/sd-scripts and KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Shape = tuple[int, ...]
Parts = dict[str, Tensor]
"""The tensors of one layer, by the end of their names."""

RANK = 4
PREFIX = "model.diffusion_model."


class _Maker:
    """Makes the parts of one layer, of each type, for a weight of a shape."""

    def __init__(self, seed: int, rank: int = RANK):
        self.generator, self.rank = torch.Generator().manual_seed(seed), rank

    def randn(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale

    def factors(self, s: Shape, scale: float = 0.3) -> tuple[Tensor, Tensor]:
        """Return `[O, r]`, `[r, I, ...]`; their product is `scale` times as large as a weight."""
        inputs = torch.Size(s[1:]).numel()
        return self.randn(s[0], self.rank, scale=scale * self.rank**-0.5), self.randn(
            self.rank, *s[1:], scale=inputs**-0.5
        )

    def lora(self, s: Shape) -> Parts:
        up, down = self.factors(s)
        up = up[..., None, None] if len(s) == 4 else up
        return {
            "lora_up.weight": up,
            "lora_down.weight": down,
            "alpha": torch.tensor(self.rank / 2),
        }

    def locon_cp(self, s: Shape) -> Parts:
        """Return a convolution as up, middle and down (Tucker)."""
        parts = {
            "lora_up.weight": self.randn(s[0], RANK, 1, 1, scale=0.2),
            "lora_mid.weight": self.randn(RANK, RANK, *s[2:], scale=0.3),
        }
        return {
            **parts,
            "lora_down.weight": self.randn(RANK, s[1], 1, 1, scale=s[1] ** -0.5),
            "alpha": torch.tensor(float(RANK)),
        }

    def loha(self, s: Shape) -> Parts:
        flat = (s[0], torch.Size(s[1:]).numel())
        (a1, b1), (a2, b2) = self.factors(flat, 1.0), self.factors(flat, 5.0)
        return {
            "hada_w1_a": a1,
            "hada_w1_b": b1,
            "hada_w2_a": a2,
            "hada_w2_b": b2,
            "alpha": torch.tensor(float(RANK)),
        }

    def loha_cp(self, s: Shape) -> Parts:
        def side() -> tuple[Tensor, Tensor, Tensor]:
            return (
                self.randn(RANK, RANK, *s[2:], scale=0.5),
                self.randn(RANK, s[0], scale=0.5),
                self.randn(RANK, s[1], scale=0.3),
            )

        (t1, a1, b1), (t2, a2, b2) = side(), side()
        parts = {
            "hada_t1": t1,
            "hada_w1_a": a1,
            "hada_w1_b": b1,
            "hada_t2": t2,
            "hada_w2_a": a2,
            "hada_w2_b": b2,
        }
        return {**parts, "alpha": torch.tensor(float(RANK))}

    def lokr(self, s: Shape) -> Parts:
        return {
            "lokr_w1": self.randn(2, 2, scale=0.3),
            "lokr_w2": self.randn(s[0] // 2, s[1] // 2, *s[2:], scale=0.1),
        }

    def lokr_factors(self, s: Shape) -> Parts:
        up, down = self.factors((s[0] // 2, s[1] // 2))
        return {
            "lokr_w1": self.randn(2, 2, scale=0.5),
            "lokr_w2_a": up,
            "lokr_w2_b": down,
            "alpha": torch.tensor(float(RANK)),
        }

    def ia3(self, s: Shape) -> Parts:
        return {"weight": self.randn(s[0], scale=0.1), "on_input": torch.tensor(False)}

    def ia3_input(self, s: Shape) -> Parts:
        return {"weight": self.randn(s[1], scale=0.1), "on_input": torch.tensor(True)}

    def oft(self, s: Shape) -> Parts:
        return {
            "oft_blocks": self.randn(RANK, s[0] // RANK, s[0] // RANK, scale=0.02),
            "alpha": torch.tensor(0.01),
        }

    def oft_diag(self, s: Shape) -> Parts:
        return {
            "oft_diag": torch.eye(8).repeat(s[0] // 8, 1, 1)
            + self.randn(s[0] // 8, 8, 8, scale=0.05)
        }

    def boft(self, s: Shape) -> Parts:
        return {
            "oft_blocks": self.randn(2, s[0] // 8, 8, 8, scale=0.02),
            "alpha": torch.tensor(0.01),
            "rescale": 1 + self.randn(s[0], scale=0.02),
        }

    def glora(self, s: Shape) -> Parts:
        (b2, b1), (a2, a1) = self.factors(s), self.factors((s[1], s[1]), 0.1)
        return {
            "a1.weight": a1,
            "a2.weight": a2,
            "b1.weight": b1,
            "b2.weight": b2,
            "alpha": torch.tensor(float(RANK)),
        }

    def full(self, s: Shape) -> Parts:
        return {"diff": self.randn(*s, scale=0.1 * torch.Size(s[1:]).numel() ** -0.5)}

    def full_bias(self, s: Shape) -> Parts:
        return {**self.full(s), "diff_b": self.randn(s[0], scale=0.05)}

    def norm(self, s: Shape) -> Parts:
        return {"w_norm": self.randn(*s, scale=0.1), "b_norm": self.randn(*s, scale=0.1)}

    def dora(self, s: Shape) -> Parts:
        return {
            **self.lora(s),
            "dora_scale": 0.5 + self.randn(1, s[1], *[1] * (len(s) - 2), scale=0.05).abs(),
        }


def _transformers(name: str, s: Shape) -> bool:
    return ".transformer_blocks." in name and len(s) == 2


def _queries(name: str, s: Shape) -> bool:
    return name.endswith("attn1.to_q.weight")


def _convolutions(name: str, s: Shape) -> bool:
    return name.endswith(("in_layers.2.weight", "out_layers.3.weight"))


def _both(name: str, s: Shape) -> bool:
    return _transformers(name, s) or _convolutions(name, s)


def _norms(name: str, s: Shape) -> bool:
    return len(s) == 1 and name.endswith(("in_layers.0.weight", "norm1.weight", "norm3.weight"))


KINDS: dict[str, tuple[Callable[[_Maker, Shape], Parts], Callable[[str, Shape], bool]]] = {
    "lora": (_Maker.lora, _transformers),
    "locon": (_Maker.lora, _both),
    "locon-cp": (_Maker.locon_cp, _convolutions),
    "loha": (_Maker.loha, _both),
    "loha-cp": (_Maker.loha_cp, _convolutions),
    "lokr": (_Maker.lokr, _both),
    "lokr-factors": (_Maker.lokr_factors, _transformers),
    "ia3": (_Maker.ia3, _transformers),
    "ia3-input": (_Maker.ia3_input, _transformers),
    "oft": (_Maker.oft, _both),
    "oft-diag": (_Maker.oft_diag, _both),
    "boft": (_Maker.boft, _transformers),
    "glora": (_Maker.glora, _transformers),
    "full": (_Maker.full, _both),
    "full-bias": (_Maker.full_bias, _queries),  # these layers have no bias
    "norm": (_Maker.norm, _norms),
    "dora": (_Maker.dora, _both),
}


def shapes_of(checkpoint: Path) -> dict[str, Shape]:
    """Return the shapes of the UNet's parameters, by name without the prefix."""
    with safe_open(checkpoint, "pt") as f:
        names = [name for name in f.keys() if name.startswith(PREFIX)]  # noqa: SIM118
        return {n.removeprefix(PREFIX): tuple(f.get_slice(n).get_shape()) for n in names}


def network(
    kind: str, shapes: Mapping[str, Shape], seed: int = 1, rank: int = RANK
) -> dict[str, Tensor]:
    """Return the tensors of a file of this kind. `rank` is that of plain LoRAs."""
    make, wanted = KINDS[kind]
    maker = _Maker(seed, rank)
    out = {}
    for name, shape in shapes.items():
        if name.endswith(".weight") and wanted(name, shape):
            group = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            out |= {f"{group}.{part}": t.contiguous() for part, t in make(maker, shape).items()}
    return out


def write_all(folder: Path, checkpoint: Path) -> list[str]:
    """Write a file of each kind, named `kind.safetensors`; return the kinds."""
    shapes = shapes_of(checkpoint)
    for kind in KINDS:
        save_file(network(kind, shapes), folder / f"{kind}.safetensors")
    return list(KINDS)


def with_text(checkpoint: Path) -> dict[str, Tensor]:
    """Return a LoRA of the UNet and of SD1's text encoder, with the embedding `accelword`."""
    maker, out = _Maker(7), network("lora", shapes_of(checkpoint))
    for i in range(12):
        up, down = maker.factors((3072, 768))
        group = f"lora_te_text_model_encoder_layers_{i}_mlp_fc1"
        out |= {
            f"{group}.lora_up.weight": up,
            f"{group}.lora_down.weight": down,
            f"{group}.alpha": torch.tensor(float(RANK)),
        }
    return {**out, "bundle_emb.accelword.string_to_param.*": maker.randn(2, 768, scale=0.3)}


def bad_files(folder: Path, checkpoint: Path) -> None:
    """Write files that cannot be used.

    They are cut off, empty, no pickle, of NaN, for another architecture, or of wrong shapes.
    """
    good = network("lora", shapes_of(checkpoint))
    path = folder / "bad-cut.safetensors"
    save_file(good, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "bad-empty.safetensors").write_bytes(b"")
    (folder / "bad-pickle.pt").write_bytes(b"not a pickle")
    save_file(
        {k: torch.full_like(t, torch.nan) if t.ndim else t for k, t in good.items()},
        folder / "bad-nan.safetensors",
    )
    save_file(
        {k.replace("input_blocks", "no_blocks"): t for k, t in good.items()},
        folder / "bad-names.safetensors",
    )
    save_file(
        {k: t.repeat(2, *[1] * (t.ndim - 1)) if "lora_up" in k else t for k, t in good.items()},
        folder / "bad-shapes.safetensors",
    )
