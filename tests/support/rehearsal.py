"""A GPU in rehearsal: tensors that say they are on `cuda:0` and are computed on the CPU, as strict as a real one.

Inside `rehearsal()`, what is sent to `cuda` refuses to meet tensors of the CPU (but for single numbers), to turn into
NumPy, and random generators of the CPU. Every time at which the host would wait for the device, and every copy between
them, is counted by the line of the product that caused it.

To torch such a tensor is of the device type `meta`, which has shapes alone: autograd then runs in the calling
thread, where the modes below see every operation.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.support import ROOT

DEVICE = torch.device("cuda:0")
CARRIER = torch.device("meta")
PRODUCT = tuple(f"{ROOT / name}/" for name in ("upvit_core", "pages"))
aten = torch.ops.aten

COPIES = {aten._to_copy.default, aten.copy_.default}
MAY_MIX = COPIES | {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
}  # fmt: skip
"""Operations whose arguments may be on both: copies, and indices of the CPU."""
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten._unique2.default, aten.linalg_eigh.default, aten._linalg_eigh.default,
}  # fmt: skip
"""Operations whose result the host must know; a decomposition checks its own success."""


@dataclass
class Counted:
    """Host waits and copies so far, each by `file:line` of the product."""

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        self.waits.clear()
        self.copies.clear()


_counted: Counted | None = None


class OnDevice(Tensor):
    """A tensor on the device; `inside` holds its numbers."""

    inside: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            inside.shape,
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=CARRIER,
        )
        made.inside = inside
        return made

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"OnDevice({self.inside})"

    def numpy(self, **_: object) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


CpuGenerator = torch.Generator


class _AnyGenerator(type(torch.Generator)):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, CpuGenerator)


class _Generator(CpuGenerator, metaclass=_AnyGenerator):
    """A random generator of the device, or of the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = CpuGenerator.__new__(cls if _is_cuda(device) else CpuGenerator)
        return made


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _line() -> str:
    """The line of the product that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PRODUCT):
            return f"{frame.f_code.co_filename.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "a test"


def _compute(operation: Any, args: Any, kwargs: Any) -> Any:
    """The operation on what is inside; its result is on the device where an argument, or `device=`, is."""
    leaves = tree_leaves((args, kwargs))
    here = any(isinstance(leaf, OnDevice) for leaf in leaves)
    wanted = kwargs.get("device")
    there = here if wanted is None else torch.device(wanted).type == CARRIER.type
    if here:
        _check_devices(operation, leaves)
    if (here or there) and any(type(leaf) is CpuGenerator for leaf in leaves):
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({_line()})")
    if _counted is not None:
        _count(operation, args, here, there, kwargs)
    kwargs = {key: value for key, value in kwargs.items() if key not in ("pin_memory", "device")}
    if wanted is not None:
        kwargs["device"] = torch.device("cpu")
    if not (here or there):
        return operation(*args, **kwargs)
    plain_args, plain_kwargs = tree_map(_inside, (args, kwargs))
    with torch.inference_mode(False):  # a view of a parameter is no inference tensor, and cannot be made of one
        result = operation(*plain_args, **plain_kwargs)
        if operation._schema.is_mutable and args and result is plain_args[0]:
            if torch.Tag.inplace_view in operation.tags:  # the shape of what is outside changes too
                with torch._C._DisableTorchDispatch():
                    operation(*args, **kwargs)
            return args[0]
        if not there:
            return result
        return tree_map(lambda leaf: OnDevice(leaf) if type(leaf) is Tensor else leaf, result)


def _inside(leaf: Any) -> Any:
    return leaf.inside if isinstance(leaf, OnDevice) else leaf


def _check_devices(operation: Any, leaves: Sequence[Any]) -> None:
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, OnDevice) and leaf.dim()]
    if others and operation not in MAY_MIX:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got cuda:0 and cpu in {operation} ({_line()})"
        )


def _count(operation: Any, args: Any, here: bool, there: bool, kwargs: Mapping[str, Any]) -> None:
    assert _counted is not None
    if operation in COPIES:
        source = args[1] if operation is aten.copy_.default else args[0]
        arrives = there if operation is aten._to_copy.default else isinstance(args[0], OnDevice)
        if isinstance(source, OnDevice) != arrives:
            _counted.copies[_line()] += 1
            if not arrives and not kwargs.get("non_blocking"):
                _counted.waits[_line()] += 1
        return
    masks = operation in MAY_MIX and any(
        isinstance(leaf, OnDevice) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2])
    )
    if here and (masks or operation in WAITS):
        _counted.waits[_line()] += 1


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


class _DeviceNames(TorchFunctionMode):
    """Sends what is asked for on `cuda` to the device in rehearsal."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        if function in (torch.tensor, torch.as_tensor) and _is_cuda(kwargs.get("device")):
            del kwargs["device"]
            return function(*args, **kwargs).to(CARRIER)
        args, kwargs = tree_map(lambda leaf: CARRIER if _is_cuda(leaf) else leaf, (args, kwargs))
        if function is Tensor.cuda:
            return args[0].to(CARRIER)
        return function(*args, **kwargs)


def _is_cuda(value: Any) -> bool:
    if isinstance(value, str):
        return value == "cuda" or value.startswith("cuda:")
    return isinstance(value, torch.device) and value.type == "cuda"


@contextmanager
def rehearsal() -> Iterator[Counted]:
    """`cuda` is a device inside; yields what is counted."""
    global _counted
    _counted = Counted()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's numbers cannot be exchanged
    try:
        with ExitStack() as stack:
            nothing = dict.fromkeys(("synchronize", "set_device", "get_rng_state", "set_rng_state"))
            for name, value in {"get_device_name": "rehearsal", "device_count": 1, **nothing}.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value, **named: value))
            stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
            stack.enter_context(_DeviceNames())
            stack.enter_context(_Operations())
            yield _counted
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        _counted = None
