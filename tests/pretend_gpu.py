"""A second device for machines without one: COURSE_TEST_DEVICE=pretend runs the methods' tests and the labs on it.

Its tensors compute on the processor, but they say that they stand elsewhere. Two things are then as on a real GPU. An
operation between the two places fails, and so does NumPy: a tensor that a method forgot to put on the model's device is
found on every machine. And the rounding of a product depends on its shape: a text alone and the same text in a batch
agree to six digits, and no longer bit for bit. What it cannot find: mistakes of a GPU's kernels, and its memory.

Built on two doors that PyTorch keeps for devices written in Python: a tensor that wraps another one
(`torch.Tensor._make_wrapper_subclass`) and the free dispatch key `PrivateUse1`.
"""

# It takes the place of what PyTorch defines for its own devices, which no type allows.
# mypy: disable-error-code="assignment, attr-defined, method-assign, misc, override, no-untyped-call"

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch._decomp.decompositions import lstm_impl
from torch.utils import backend_registration
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from transformers import TrainingArguments

NAME = "pretend"
# As on a GPU: these copy between the places, and an index may stay on the processor.
_BETWEEN = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_")

# Computed in two pieces, see `_product`.
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
# PyTorch would make an empty tensor and let it grow, and a wrapper cannot grow.
_GROWING = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm")


class _Module:
    """What `torch.pretend` must answer."""

    @staticmethod
    def is_available() -> bool:
        return True

    is_initialized = is_available

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Nothing: the processor's generator draws for this device too."""

    @staticmethod
    def get_rng_state(device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)


class Far(torch.Tensor):
    """A tensor that says it stands on the pretended device; `near` holds its numbers."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        layout: dict[str, Any] = {"strides": near.stride(), "storage_offset": near.storage_offset()}
        far: Far = torch.Tensor._make_wrapper_subclass(cls, near.size(), dtype=near.dtype, device=DEVICE, **layout)
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, *args, **kwargs or {})

    # What PyTorch does for such a tensor outside its dispatcher, where only the class can answer:

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Far) -> None:
        torch.Tensor.data.__set__(self, other)
        self.near = other.near

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_indices(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_indices(key), value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Far:
        if id(self) not in memo:
            copy = Far(self.near.detach().clone()).requires_grad_(self.requires_grad)
            if isinstance(self, nn.Parameter):
                copy._is_param = True
            if self.grad is not None:
                copy.grad = self.grad.__deepcopy__(memo)
            memo[id(self)] = copy
        known: Far = memo[id(self)]
        return known

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else object.__format__(self, spec)

    def __repr__(self) -> str:
        return f"{self.near!r} on {DEVICE}"

    def data_ptr(self) -> int:
        return self.near.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.near.untyped_storage()

    def storage(self) -> Any:
        return self.near.storage()

    def tolist(self) -> Any:
        return self.near.tolist()

    def numpy(self, **_: object) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy


def _indices(key: Any) -> Any:
    """Lists as tensors: PyTorch would make them on the tensor's device without asking the dispatcher."""
    if isinstance(key, tuple):
        return tuple(_indices(part) for part in key)
    return torch.tensor(key) if isinstance(key, list) else key


def _compute(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on the processor, and put the result where a GPU's would be."""
    values, structure = tree_flatten((args, kwargs))
    far = [value for value in values if isinstance(value, Far)]
    near = [value for value in values if isinstance(value, torch.Tensor) and not isinstance(value, Far) and value.ndim]
    name = operation._schema.name
    first_is_near = bool(args) and any(args[0] is value for value in near)
    if far and near and (name not in _BETWEEN or ("index" in name and first_is_near)):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! ({name})"
        )
    wanted = kwargs.get("device")
    to_far = bool(far) if wanted is None else torch.device(wanted).type == NAME
    args_near, kwargs_near = tree_unflatten([_nearby(value) for value in values], structure)
    is_product = name in _PRODUCTS and far and far[0].is_floating_point() and "out" not in kwargs
    result = (_product if is_product else operation)(*args_near, **kwargs_near)
    known = {id(value.near): value for value in far}  # what an operation in place gives back is what it was given

    def placed(value: Any) -> Any:
        if not to_far or not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else Far(value)

    return tree_map(placed, result)


def _product(*factors: torch.Tensor, beta: float = 1, alpha: float = 1) -> torch.Tensor:
    """``a b``, or ``beta c + alpha a b``: the sum over the inner size in two pieces, cut where the shapes say.

    A GPU's libraries choose such pieces by the shapes, too. Half precision is summed in float32 there and here.
    """
    *added, a, b = factors
    dtype, wide = a.dtype, torch.promote_types(a.dtype, torch.float32)
    cut = hash((a.shape[-2:], b.shape[-1], a.stride(-1) == 1, b.stride(-1) == 1)) % max(1, a.shape[-1])
    a, b = a.to(wide), b.to(wide)
    product = a[..., :cut] @ b[..., :cut, :] + a[..., cut:] @ b[..., cut:, :]
    return (beta * added[0].to(wide) + alpha * product if added else product).to(dtype)


def _nearby(value: Any) -> Any:
    if isinstance(value, Far):
        return value.near
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _trainer_device(arguments: TrainingArguments) -> torch.device:
    place: torch.device = arguments._setup_devices  # counts the GPUs, too
    return place if arguments.use_cpu else DEVICE


def _install() -> None:
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_compute, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast changes nothing here
    some = torch.library.Library("aten", "IMPL")
    some.impl("lstm.input", lstm_impl, "AutogradPrivateUse1")  # step by step: the fused cell is for real devices
    for name in _GROWING:
        operation = reduce(getattr, name.split("."), torch.ops.aten)
        some.impl(name, partial(_compute, getattr(operation, "default", operation)), "PrivateUse1")
    _KEPT.extend([everything, some])

    _device_constructors()  # `with torch.device(...)` notes the functions that it steers before they change here
    make_tensor = torch.tensor  # does not ask the dispatcher where to put its numbers

    def tensor(data: Any, *, device: Any = None, **settings: Any) -> torch.Tensor:
        is_far = device is not None and torch.device(device).type == NAME
        made = make_tensor(data, device="cpu" if is_far else device, **settings)
        return made.to(DEVICE) if is_far else made

    move = nn.Module._apply  # a real device's parameters stay the same objects when a model moves

    def move_in_place(self: nn.Module, *args: Any, **settings: Any) -> nn.Module:
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return move(self, *args, **settings)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    def set_data(self: nn.Parameter, other: torch.Tensor) -> None:
        if isinstance(other, Far):  # a parameter of the processor goes over, as with a real device
            torch.utils.swap_tensors(self, nn.Parameter(other, self.requires_grad))
        else:
            torch.Tensor.data.__set__(self, other)

    nn.Parameter.data = property(torch.Tensor.data.__get__, set_data)
    torch.tensor = tensor
    nn.Module._apply = move_in_place
    torch.Tensor._use_count = lambda tensor: 1  # else what still refers to a parameter would keep it from moving
    PartialState.default_device = property(lambda _: DEVICE)
    TrainingArguments.device = property(_trainer_device)


_KEPT: list[Any] = []  # PyTorch forgets what a library registered when the library is collected
_install()
