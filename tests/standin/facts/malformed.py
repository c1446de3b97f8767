"""Networks of every kind, each with one tensor that is not as it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Parts = dict[str, Tensor]


def _random(*size: int, scale: float = 0.1) -> Tensor:
    g = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, generator=g) * scale


def _good(shape: tuple[int, ...]) -> dict[str, Parts]:
    """Return the parts of a good network of each kind for a weight of this shape."""
    some, alpha = _random, torch.tensor(2.0)
    whole = {
        "full": {"diff": some(*shape), "diff_b": some(shape[0])},
        "norm": {"w_norm": some(*shape), "b_norm": some(shape[0])},
        "ia3": {"weight": some(shape[0]), "on_input": torch.tensor(False)},
    }
    if len(shape) == 1:
        return whole
    outputs, inputs, *kernel = shape
    ones, flat = [1] * len(kernel), torch.Size(shape[1:]).numel()
    lora = {
        "lora_up.weight": some(outputs, 4, *ones),
        "lora_down.weight": some(4, inputs, *kernel),
        "alpha": alpha,
    }
    rank = {"a": (outputs, 4), "b": (4, flat)}
    loha = {f"hada_w{n}_{x}": some(*rank[x], scale=0.3 * n) for n in (1, 2) for x in "ab"}
    return {
        **whole,
        **(_of_convolutions(*shape) if kernel else _of_matrices(*shape)),
        "lora": lora,
        "dora": {**lora, "dora_scale": some(1, inputs, *ones).abs()},
        "lora with a bias": {**lora, "bias": some(*shape)},
        "loha": {**loha, "alpha": alpha},
        "lokr": {"lokr_w1": some(2, 2), "lokr_w2": some(outputs // 2, inputs // 2, *kernel)},
        "oft": {"oft_blocks": some(4, outputs // 4, outputs // 4), "alpha": torch.tensor(0.01)},
        "oft-diag": {"oft_diag": some(outputs // 4, 4, 4), "rescale": some(outputs)},
        "boft": {"oft_blocks": some(2, outputs // 4, 4, 4), "alpha": torch.tensor(0.01)},
    }


def _of_matrices(outputs: int, inputs: int) -> dict[str, Parts]:
    some, alpha = _random, torch.tensor(2.0)
    return {
        "ia3-input": {"weight": some(inputs), "on_input": torch.tensor(True)},
        "glora": {
            "a1.weight": some(4, inputs),
            "a2.weight": some(inputs, 4),
            "b1.weight": some(4, inputs, scale=0.2),
            "b2.weight": some(outputs, 4, scale=0.2),
            "alpha": alpha,
        },
        "lokr in factors": {
            "lokr_w1": some(2, 2),
            "lokr_w2_a": some(outputs // 2, 4),
            "lokr_w2_b": some(4, inputs // 2),
            "alpha": alpha,
        },
    }


def _of_convolutions(outputs: int, inputs: int, *kernel: int) -> dict[str, Parts]:
    some = _random
    return {
        "lora with a middle": {
            "lora_up.weight": some(outputs, 4, 1, 1),
            "lora_mid.weight": some(4, 4, *kernel),
            "lora_down.weight": some(4, inputs, 1, 1),
        },
        "loha with cores": {
            f"hada_{name}": some(*size, scale=0.3)
            for n in (1, 2)
            for name, size in (
                (f"t{n}", (4, 4, *kernel)),
                (f"w{n}_a", (4, outputs)),
                (f"w{n}_b", (4, inputs)),
            )
        },
    }


_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "shorter": lambda t: t[1:] if t.ndim else t,
    "narrower": lambda t: t[..., 1:] if t.ndim else t,
    "transposed": lambda t: t.transpose(0, 1) if t.ndim > 1 else t.repeat(2),
    "a number": lambda t: t.flatten()[0],
    "one value": lambda t: t.flatten()[:1],
    "empty": lambda t: t[:0] if t.ndim else t.reshape(1)[:0],
    "empty at the end": lambda t: t[..., :0] if t.ndim else t.reshape(1)[:0],
    "of one more dimension": lambda t: t[None],
    "NaN": lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t,
    "infinite": lambda t: torch.full_like(t, torch.inf) if t.is_floating_point() else t,
    "zero": torch.zeros_like,
    "whole numbers": lambda t: (t * 50).to(torch.int32),
}


def networks_for(shape: tuple[int, ...], kind: str = "") -> Iterator[tuple[str, Parts]]:
    """Yield the name and the parts of each network for a weight of this shape, or of one kind."""
    for name, parts in _good(shape).items():
        if kind not in ("", name):
            continue
        yield f"{name}: good", dict(parts)
        for part, t in parts.items():
            yield f"{name}: without {part}", {k: v for k, v in parts.items() if k != part}
            for what, change in _CHANGES.items():
                yield f"{name}: {part} {what}", {**parts, part: change(t).clone()}
        ranked = ("lora_", "hada_", "lokr_w2_", "a1.", "a2.", "b1.", "b2.")
        if rank := [part for part in parts if part.startswith(ranked)]:
            second = [p for p in rank if p.startswith(("lora_up", "a2.", "b2.")) or p[-2:] == "_a"]
            yield (
                f"{name}: rank 0",
                {
                    k: (v[:, :0] if k in second else v[:0] if k in rank else v)
                    for k, v in parts.items()
                },
            )


KINDS = sorted({*_good((8, 8)), *_good((8, 8, 3, 3)), *_good((8,))})
