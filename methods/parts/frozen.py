"""Frozen weights in bfloat16, cast once.

Autocast casts the weight of a linear map or convolution to bfloat16 at every call, and its cache holds only weights
that are trained. A frozen tower's weights never change, so :func:`keep_casts` lets each such map keep its cast copy
(half the bytes of the float32 weights, made when first used). The numbers are the same to the bit.

A copy is used inside autocast only, for a parameter that is not trained and has not changed since; a trained one is
cast at every call, so that gradients reach it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _KeepsCasts(nn.Module):
    """A module with ``weight`` and ``bias`` that keeps their casts; copies of the module start without any."""

    def cast(self, name: str) -> Tensor | None:
        """The parameter of this name as autocast would cast it, or the parameter itself where that is not known."""
        value: Tensor | None = getattr(self, name)
        if torch.compiler.is_compiling():  # made before: see Backbone.compile
            made = getattr(self, "_casts", None)
            return made[name][1] if made is not None and name in made else value
        if value is None or value.requires_grad or not torch.is_autocast_enabled(value.device.type):
            return value
        kept: dict[str, tuple[Any, Tensor]] = self.__dict__.setdefault("_casts", {})
        dtype = torch.get_autocast_dtype(value.device.type)
        stamp = (value.data_ptr(), value._version, dtype)
        if name not in kept or kept[name][0] != stamp:
            kept[name] = stamp, value.detach().to(dtype)
        return kept[name][1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_casts"}


class FrozenLinear(_KeepsCasts, nn.Linear):
    """``nn.Linear`` that casts frozen parameters once."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.cast("weight")
        assert weight is not None
        return F.linear(input, weight, self.cast("bias"))


class FrozenConv2d(_KeepsCasts, nn.Conv2d):
    """``nn.Conv2d`` that casts frozen parameters once."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.cast("weight")
        assert weight is not None
        return self._conv_forward(input, weight, self.cast("bias"))


#: What each module becomes. Subclasses of these (an attention's output map, peft's adapters) stay as they are.
_KEEPING: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FrozenLinear, nn.Conv2d: FrozenConv2d}


def keep_casts(model: nn.Module) -> None:
    """Let every linear map and convolution of a model keep the cast of its frozen parameters, in place."""
    for module in model.modules():
        kind = _KEEPING.get(type(module))
        if kind is not None:
            module.__class__ = kind


def cast_now(model: nn.Module) -> None:
    """Make all casts now, inside autocast, where a first call would otherwise make them."""
    for module in model.modules():
        if isinstance(module, _KeepsCasts):
            module.cast("weight")
            module.cast("bias")
