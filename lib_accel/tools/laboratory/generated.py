"""Replay the host code that AOTInductor generates for a GPU, without compiling it.

The generated C++ is straight-line code of a few kinds of statements: sizes, tensors that are made
or viewed, kernels that are launched, operators that are called. Each is translated into Python and
run: tensors and operators are torch's own on the pretend card, and launches of generated kernels
are recorded. The translation is for the torch that the laboratory pins (environment.py: TORCH).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import AccelError

Launched = Callable[[str, Mapping[str, Tensor]], None]
"""Is told of a launch: the kernel's name, and the tensors that it is given, by its own names."""


class GeneratedCode:
    """The host code of one unit. Raises AccelError where a statement is of no known kind."""

    def __init__(self, text: str):
        self._inputs = re.findall(r"auto (\w+) = std::move\(inputs\[\d+\]\);", text)
        self._sizes = re.findall(r"int64_t (\w+) = (\w+)_size\[(\d+)\];", text)
        body = text.partition("inputs.clear();")[2].partition("\n}")[0]
        lines = (line.partition("//")[0].strip() for line in body.splitlines())
        statements = [part.strip() for line in lines for part in line.split(";")]
        self._code = "\n".join(filter(None, map(_translated, statements)))
        self._kernels = {
            name: re.findall(r"(\w+)(?:,| = |$)", " ".join(parameters.split()))
            for name, parameters in re.findall(
                r"static inline void call_(\w+)\((.*?)\)\{", text, re.DOTALL
            )
        }
        if not (self._inputs and self._code):
            raise AccelError("this is no host code for a GPU as AOTInductor generates it")

    def __call__(self, inputs: list[Tensor], launched: Launched) -> list[Tensor]:
        """Replay the code on `inputs` and return its outputs."""
        interface = _Interface(inputs[0].device)
        names: dict[str, Any] = {
            **interface.functions(),
            **{f"call_{name}": self._kernel(name, launched) for name in self._kernels},
            **dict(zip(self._inputs, inputs, strict=True)),
        }
        names |= {size: names[owner].shape[int(at)] for size, owner, at in self._sizes}
        try:
            exec(compile(self._code, "<generated>", "exec"), names)
        except NameError as e:
            raise AccelError(f"generated code calls what the count does not know: {e}") from e
        return [out for _, out in sorted(interface.outputs.items())]

    def _kernel(self, name: str, launched: Launched) -> Callable[..., None]:
        def launch(*arguments: Any) -> None:
            given = zip(self._kernels[name], arguments, strict=False)
            launched(name, {to: tensor for to, tensor in given if isinstance(tensor, Tensor)})

        return launch


_IGNORED = re.compile(r"AtenTensorHandle \w+$|AOTICudaStreamGuard |\[\[maybe_unused\]\]")
_TYPES = re.compile(r"^(?:(?:static|constexpr|const|auto|int64_t|int32_t|double|bool) )+")
_CONSTRUCTED = re.compile(r"^RAIIAtenTensorHandle (\w+)\((\w+)\)$")
_REPLACED = (
    (r"(\d)L\b", r"\1"),
    (r"std::array<int64_t, \d+>\{(.*?)\}\.cbegin\(\)", r"[\1]"),
    (r"\[\] = \{(.*)\}", r" = [\1]"),
    (r"&(\w+)", r"'\1'"),
    (r"this->|std::|c10::|static_cast<\w+>|<int64_t>", ""),
    (r"(?<!/)/(?!/)", "//"),
    (r"\.release\(\)", ""),
    (r"(\w+)\.reset\(\)", r"\1 = None"),
    (r"\bnullptr\b", "None"),
)


def _translated(statement: str) -> str:
    """Return a statement of the generated C++ in Python; nothing for what computes nothing."""
    if _IGNORED.match(statement):
        return ""
    if made := _CONSTRUCTED.match(statement):
        return f"{made[1]} = handles['{made[2]}']"
    statement = _TYPES.sub("", statement)
    for pattern, python in _REPLACED:
        statement = re.sub(pattern, python, statement)
    return statement


class _Interface:
    """What the generated code calls: torch's C interface, of which it uses little."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.handles: dict[str, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}

    def functions(self) -> dict[str, Any]:
        """Return everything by the names in the generated code."""
        aten = torch.ops.aten
        attention = ("flash", "efficient", "cudnn")
        return {
            "AOTI_TORCH_ERROR_CODE_CHECK": lambda result: result,
            "wrap_with_raii_handle_if_needed": lambda tensor: tensor,
            "move": lambda tensor: tensor,
            "div_floor_integer": lambda a, b: a // b,
            "reinterpret_tensor_wrapper": _view,
            "aoti_torch_empty_strided": self._empty_strided,
            "aoti_torch_cuda_mm_out": lambda out, *a: aten.mm.out(*a, out=out),
            "aoti_torch_cuda_bmm_out": lambda out, *a: aten.bmm.out(*a, out=out),
            "aoti_torch_cuda_addmm_out": self._addmm_out(aten.addmm.out),
            "aoti_torch_cuda_baddbmm_out": self._addmm_out(aten.baddbmm.out),
            "aoti_torch_cuda_convolution": self._convolution,
            **{
                f"aoti_torch_cuda__scaled_dot_product_{kind}_attention": self._attention
                for kind in attention
            },
            **{f"cached_torch_dtype_{name}": getattr(torch, name) for name in _DTYPES},
            "handles": self.handles,
            "output_handles": self.outputs,
            **dict.fromkeys(("device_idx_", "stream", "kernels", "cubin_dir_")),
            "cached_torch_device_type_cuda": None,
        }

    def _empty_strided(
        self, rank: int, size: list[int], stride: list[int], dtype: torch.dtype, *rest: Any
    ) -> None:
        self.handles[rest[-1]] = torch.empty_strided(size, stride, dtype=dtype, device=self._device)

    @staticmethod
    def _addmm_out(operator: Any) -> Callable[..., None]:
        def call(out: Tensor, added: Tensor, a: Tensor, b: Tensor, beta: int, alpha: int) -> None:
            operator(added, a, b, beta=beta, alpha=alpha, out=out)

        return call

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> None:
        stride, _, padding, _, dilation, _, transposed, extra, _, groups, result = rest
        self.handles[result] = torch.ops.aten.convolution.default(
            x, weight, bias, stride, padding, dilation, bool(transposed), extra, groups
        )

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> None:
        """Compute the attention that torch takes here; its first result is the only one used."""
        results = [name for name in rest if isinstance(name, str) and name.endswith("_handle")]
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        self.handles |= dict.fromkeys(results, out)


_DTYPES = ("float16", "bfloat16", "float32", "int64", "int32", "bool")


def _view(base: Tensor, rank: int, size: list[int], stride: list[int], offset: int) -> Tensor:
    return torch.as_strided(base, size, stride, base.storage_offset() + offset)
