"""A simulated accelerator, so that device faults show on a machine without one.

Inside ``with simulated():`` the torch device ``"sim"`` keeps its data in CPU memory and refuses what CUDA refuses, with
a ``RuntimeError``:

* an operation on device tensors and CPU tensors together. As on CUDA, a CPU tensor without dimensions and a CPU index
  in ``x[index]`` are allowed;
* a random generator of another device than the numbers it draws;
* ``numpy()`` of a device tensor.

Results are those of the CPU kernels, so they can be compared with a run on the CPU. ``torch.autocast("sim")`` follows
CUDA's lists of operators. :data:`syncs` counts, by the line of the code under test, where a GPU would make the host
wait: a number or a tensor that comes back, and operators whose result has a size that depends on values (``nonzero``,
an index by a mask). It does not simulate speed, memory, kernels whose results differ from run to run, or several
devices.

torch can register a device only once and only for the whole process, so the name ``sim`` stays known after the first
use. Everything else (``torch.Generator``, the watch over generators, how modules swap their parameters) is put back
when the context ends, and no tensor of another device ever passes through this file's operators.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

#: DLPack's numbers of the two devices; 12 is torch's PrivateUse1, whose name becomes ``sim``.
_CPU, _SIM = 1, 12

_MOVES = {"aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize"}
_INDEXES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
#: Operators that do not even take a CPU tensor without dimensions (the steps of a fused optimiser are on the device).
_STRICT = {
    *("aten::cat", "aten::index_select", "aten::gather"),
    *("aten::_fused_sgd_", "aten::_fused_adam_", "aten::_fused_adamw_"),
}

#: Operators that wait for the device: their result is a Python number, or has a size that depends on values.
_WAITS = {
    *("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave"),
}

#: How often a GPU would have made the host wait, by ``file:line`` outside torch; clear it before what is counted.
syncs: collections.Counter[str] = collections.Counter()

#: The same for copies to the device that wait for the work queued there (``non_blocking=True`` does not): tensors, and
#: CPU indices of device tensors.
uploads: collections.Counter[str] = collections.Counter()

#: What CUDA's autocast runs in the low precision, in float32, and in the widest type among the arguments.
_LOW = """conv1d conv2d conv3d conv_transpose1d convolution _convolution matmul mm mv bmm addmm addmv addr addbmm
    baddbmm linear prelu chain_matmul linalg_multi_dot scaled_dot_product_attention""".split()  # noqa: SIM905
_FULL = """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
    pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm group_norm norm.Scalar norm.ScalarOpt_dim
    nuclear_norm cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss
    kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss
    triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp
    softmax.int log_softmax.int cumprod cumsum prod prod.dim_int sum sum.dim_IntList""".split()  # noqa: SIM905
_WIDEST = "addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put tensordot scatter_add cat stack".split()  # noqa: SIM905

_CPU_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """The device ``"sim"`` can be used inside; contexts do not nest."""
    _register()
    generator, swap = torch.Generator, torch.__future__.get_swap_module_params_on_conversion()
    torch.Generator = _Generator  # type: ignore[misc]
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter cannot change its device in place
    try:
        with _Watch():
            yield
    finally:
        torch.Generator = generator  # type: ignore[misc]
        torch.__future__.set_swap_module_params_on_conversion(swap)


@functools.cache
def _register() -> tuple[torch.library.Library, ...]:
    """Tell torch of the device, once a process; the libraries must stay alive."""
    _setup_privateuseone_for_python_backend("sim", _Module())
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(_run, "PrivateUse1")
    aten.impl("convolution_overrideable", _convolution, "PrivateUse1")
    aten.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, to in ((_LOW, None), (_FULL, torch.float32), (_WIDEST, "widest")):
        for name in names:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            aten.impl(name, _cast(operator, to), "AutocastPrivateUse1")
    return everything, aten


class _Module:
    """What torch asks of ``torch.sim``."""

    is_initialized = is_available = staticmethod(lambda: True)
    current_device, device_count = staticmethod(lambda: 0), staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = synchronize = empty_cache = staticmethod(lambda *_: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


# --- operators --------------------------------------------------------------------------------------------------------


def _flip(tensor: torch.Tensor, kind: int) -> torch.Tensor:
    """The same memory as a tensor of the other device: a DLPack capsule whose device field is rewritten."""
    capsule = torch._C._to_dlpack(tensor)
    ctypes.c_int32.from_address(_pointer(capsule, b"dltensor") + 8).value = kind
    return torch._C._from_dlpack(capsule)


def _on(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "sim"


def _to_cpu(value: Any) -> Any:
    return _flip(value, _CPU) if _on(value) else value


def _to_sim(value: Any) -> Any:
    return _flip(value, _SIM) if isinstance(value, torch.Tensor) else value


def _check(name: str, leaves: list[Any]) -> None:
    """Raise where CUDA would for a CPU tensor among these arguments."""
    for number, value in enumerate(leaves):
        if not isinstance(value, torch.Tensor) or _on(value) or name in _MOVES:
            continue
        if (name in _INDEXES and number > 0 and any(map(_on, leaves[:1]))) or (not value.dim() and name not in _STRICT):
            continue
        raise RuntimeError(
            f"{name}: Expected all tensors to be on the same device, but found sim:0 and {value.device} (argument"
            f" {number}, shape {tuple(value.shape)})"
        )


def _number(value: Any, beside: list[Any]) -> torch.Tensor:
    """A Python number where an operator takes a tensor: torch hands its wrapped numbers over like that."""
    double = isinstance(value, float) and any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in beside)
    return torch.tensor(value, dtype=torch.float64 if double else None)


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Every operator on the device: check, run on the same memory as CPU tensors, hand the results back."""
    name, leaves = op._schema.name, tree_flatten((args, kwargs))[0]
    if any(r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns):  # a view: metadata only
        return op.redispatch(_CPU_KEY, *args, **kwargs)
    _check(name, leaves)
    to = kwargs.get("device")
    on = torch.device(to).type == "sim" if to is not None else any(map(_on, leaves))
    if _waits(name, args, leaves, on):
        syncs[_caller()] += 1
    elif _uploads(name, args, kwargs, on):
        uploads[_caller()] += 1
    kwargs = {key: torch.device("cpu") if key == "device" and v is not None else v for key, v in kwargs.items()}
    kwargs = {key: None if key == "pin_memory" else value for key, value in kwargs.items()}
    if name == "aten::_copy_from":  # (source, destination): what copy_ becomes
        _to_cpu(args[1]).copy_(_to_cpu(args[0]))
        return args[1]
    given = {s.name: value for s, value in zip(op._schema.arguments, args, strict=False)} | kwargs
    written = [given[s.name] for s in op._schema.arguments if s.alias_info and s.alias_info.is_write]
    out = [given[s.name] for s in op._schema.arguments if s.kwarg_only and s.alias_info and _on(given.get(s.name))]
    on_cpu = {id(x): torch.empty(0, dtype=x.dtype) for x in out}  # to be resized
    values = [
        _number(x, leaves) if s.type.str() == "Tensor" and isinstance(x, (int, float)) else x
        for s, x in zip(op._schema.arguments, args, strict=False)
    ]
    named = {key: on_cpu[id(x)] if id(x) in on_cpu else tree_map(_to_cpu, x) for key, x in kwargs.items()}
    result = op(*tree_map(_to_cpu, values), **named)
    for x in out:
        _fill(x, on_cpu[id(x)])
    if any(r.alias_info is not None for r in op._schema.returns):  # in place, or out=
        return written[0] if len(op._schema.returns) == 1 else tuple(written)
    return tree_map(_to_sim, result) if on else result


def _waits(name: str, args: tuple[Any, ...], leaves: list[Any], on: bool) -> bool:
    """Whether a GPU's operator returns to the host only when the device is done; ``on``: its result is there."""
    if name == "aten::_copy_from":
        return _on(args[0]) and not _on(args[1])
    if name == "aten::_to_copy":
        return not on
    masks = (x for x in leaves[1:] if isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8))
    return name in _WAITS or ("index_put" in name and any(map(_on, masks)))  # x[mask] calls nonzero itself


def _uploads(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], on: bool) -> bool:
    """Whether an operator copies from the host and returns only behind what the device has still to do."""
    if name == "aten::_copy_from":
        return _on(args[1]) and not _on(args[0]) and args[0].dim() > 0 and not (len(args) > 2 and args[2])
    if name == "aten::_to_copy":
        return on and not _on(args[0]) and args[0].dim() > 0 and not kwargs.get("non_blocking")
    return False  # x[index] with a CPU index copies that first


def _caller() -> str:
    """The innermost line outside torch and this file."""
    frame = sys._getframe(1)
    while frame is not None and any(
        part in frame.f_code.co_filename for part in ("/torch/", __file__, "contextlib", "/kornia/")
    ):
        frame = frame.f_back  # type: ignore[assignment]
    return "backward or C++" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _fill(out: torch.Tensor, value: torch.Tensor) -> None:
    """Put a CPU result into an ``out=`` tensor of the device, which takes its shape."""
    if value.shape == out.shape:
        _flip(out, _CPU).copy_(value)
        return
    new = _flip(value, _SIM)
    set_ = torch.ops.aten.set_.source_Storage_storage_offset
    set_.redispatch(_CPU_KEY, out, new.untyped_storage(), 0, new.shape, new.stride())


def _convolution(*args: Any) -> torch.Tensor:
    _check("aten::convolution", tree_flatten(args)[0])
    return _flip(torch.ops.aten.convolution(*tree_map(_to_cpu, args)), _SIM)


def _convolution_backward(grad: Any, inputs: Any, weight: Any, *rest: Any) -> tuple[torch.Tensor | None, ...]:
    *rest, mask = rest
    _check("aten::convolution_backward", [grad, inputs, weight])
    on_cpu = [_flip(x, _CPU) for x in (grad, inputs, weight)]
    found = torch.ops.aten.convolution_backward(*on_cpu, [weight.shape[0]], *rest, mask)
    return tuple(None if one is None else _flip(one, _SIM) for one in found)


def _cast(op: Any, to: Any) -> Callable[..., Any]:
    """An operator under autocast: its arguments in ``to``, in the context's type (None), or in the widest of them."""

    def run(*args: Any, **kwargs: Any) -> Any:
        floats = [x.dtype for x in tree_flatten((args, kwargs))[0] if _on(x) and x.is_floating_point()]
        dtype = to or torch.get_autocast_dtype("sim")
        if to == "widest":
            dtype = torch.float32 if torch.float32 in floats else next(iter(floats), None)

        def cast(x: Any) -> Any:
            return x.to(dtype) if _on(x) and x.is_floating_point() and x.dtype != torch.float64 else x

        with torch._C._DisableAutocast():
            return op(*tree_map(cast, args), **tree_map(cast, kwargs))

    return run


# --- generators -------------------------------------------------------------------------------------------------------


class _Generator(torch.Generator):
    """A generator that knows for which device it was made; its numbers are those of the CPU."""

    sim: bool

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.sim = torch.device(device).type == "sim"
        return made

    @property
    def device(self) -> torch.device:
        return torch.device("sim:0" if self.sim else "cpu")


class _Watch(TorchFunctionMode):
    """Refuses a generator of another device than the numbers it draws; copies buffers, which torch cannot do here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__deepcopy__ and _on(args[0]):
            return args[1].setdefault(id(args[0]), args[0].detach().clone().requires_grad_(args[0].requires_grad))
        generator = kwargs.get("generator")
        if generator is not None:
            given = kwargs.get("device")
            on = torch.device(given).type == "sim" if given else any(map(_on, (*args, kwargs.get("out"))))
            if on != getattr(generator, "sim", False):
                raise RuntimeError(
                    f"{func.__name__}: Expected a '{'sim' if on else 'cpu'}' device type for generator but found"
                    f" '{generator.device}'"
                )
        return func(*args, **kwargs)
