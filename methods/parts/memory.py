"""Memory alignment: weights read from a file are copied to aligned memory.

A tensor of a safetensors file starts wherever its bytes are in the file. Matrix products on several threads round such
a tensor differently from an aligned one, so a method's features would differ in their last bits after saving and
loading.
"""

from __future__ import annotations

from torch import Tensor, nn

#: Bytes that torch aligns its own CPU memory to.
ALIGNMENT = 64


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it where its memory does not start at a multiple of :data:`ALIGNMENT` bytes."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def align_parameters(module: nn.Module) -> None:
    """Move every parameter and buffer of a module that is not aligned to new memory, in place."""
    for values in (module.parameters(), module.buffers()):
        for value in values:
            value.data = aligned(value.data)
