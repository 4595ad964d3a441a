"""A second device with values on a machine without one: "far", an accelerator whose tensors lie in the CPU's memory.

It is registered as PyTorch's PrivateUse1 backend, as extensions for new hardware are, so importing this changes the
process: use it in one of its own. Operations that mix devices raise, as they do on hardware.
"""

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

MISSING: set[str] = set()  # parts of the names of operations that the device does not have
UNLIKE = ("aten._to_copy.", "aten.copy_.")  # operations that bring tensors from one device to another


class Module(_DummyBackendModule):
    """What `torch.far` is."""

    def get_rng_state(self, device):
        return None

    def set_rng_state(self, state, device):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class Guard(torch._C._acc.DeviceGuard):
    def type_(self):
        return torch._C._autograd.DeviceType.PrivateUse1


_setup_privateuseone_for_python_backend(
    "far", backend_module=Module(), hook=_DummyPrivateUse1Hook(), device_guard=Guard()
)
FAR = torch.device("far", 0)
torch.inference_mode = torch.no_grad  # whose tensors cannot be of a subclass; import this before what uses it


class Far(torch.Tensor):
    """A tensor on the far device; `inner` has its values."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=FAR, requires_grad=False,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Far({self.inner})"

    def tolist(self):
        return self.inner.tolist()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """An operation on the inner tensors; what comes out is where the inputs are, or where it is asked for."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    name = str(func)
    if not name.startswith(UNLIKE):
        places = {t.device for t in tensors if t.ndim or isinstance(t, Far)}
        assert len(places) < 2, f"{name} mixes devices"
    asked = kwargs.get("device")
    far = torch.device(asked).type == "far" if asked is not None else any(isinstance(t, Far) for t in tensors)
    if far and any(part in name for part in MISSING):
        raise NotImplementedError(f"The operator '{name}' is not implemented for far")
    if far and asked is not None:
        kwargs = {**kwargs, "device": "cpu"}
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not func._schema.returns:
        return None
    if "out" in kwargs:
        return kwargs["out"]
    if name.partition(".")[2].partition(".")[0].endswith("_"):
        return args[0]
    return tree_map(lambda t: Far(t) if isinstance(t, torch.Tensor) else t, found) if far else found


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Far(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Far(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source, to, non_blocking=False):
    _inner(to).copy_(_inner(source))
    return to


OPERATIONS = torch.library.Library("aten", "IMPL")  # those that begin with no tensor of the device
OPERATIONS.impl("empty.memory_format", _empty, "PrivateUse1")
OPERATIONS.impl("empty_strided", _empty_strided, "PrivateUse1")
OPERATIONS.impl("_copy_from", _copy_from, "PrivateUse1")


def _inner(value):
    return value.inner if isinstance(value, Far) else value
