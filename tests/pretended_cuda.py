"""A CUDA device that is pretended: values are computed on the CPU, and tensors of two devices cannot be mixed.

Unlike PyTorch's fake tensors, these have values, so that code that depends on them runs, backward passes included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

# A device may differ here: copies between devices, and CPU indices into tensors of any device.
_COPIES = {Tensor.copy_, Tensor.to, Tensor.cpu, Tensor.data.__set__, torch._has_compatible_shallow_copy_type}
_INDEXED = {Tensor.__getitem__, Tensor.__setitem__}
_TO_NUMPY = {Tensor.numpy, Tensor.__array__}


class PretendedCuda(TorchFunctionMode):
    """While active, ``device="cuda"`` and ``.to("cuda")`` work; mixing devices raises as on a machine with a GPU.

    A storage has the device of the call that made it. Storages that the autograd engine made have none, and fit to any.
    """

    def __init__(self) -> None:
        super().__init__()
        self._devices: dict[int, tuple[StorageWeakRef, torch.device]] = {}

    def device_of(self, tensor: Tensor) -> torch.device | None:
        """The pretended device of a tensor; None if nothing is known of its storage."""
        if tensor.layout == torch._mkldnn:  # type: ignore[attr-defined]
            return CPU
        entry = self._devices.get(tensor.untyped_storage()._cdata)
        return None if entry is None or entry[0].expired() else entry[1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return self.device_of(args[0]) or CPU
        if func == Tensor.is_cuda.__get__:
            return self.device_of(args[0]) == CUDA
        devices = self._checked(func, args, kwargs)
        if func in _TO_NUMPY and CUDA in devices:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func is Tensor.cpu:
            func, args = Tensor.to, (args[0], "cpu")
        target, args, kwargs = _without_device(func, args, kwargs)
        if target is not None and func is Tensor.to and target not in devices:
            kwargs["copy"] = True  # so that the tensors of two devices never share a storage
        out = func(*args, **kwargs)
        made_on = target or (CUDA if CUDA in devices else CPU)
        if target is not None or devices or not _tensors((args, kwargs)):
            for tensor in _tensors(out):
                if self.device_of(tensor) is None:
                    storage = tensor.untyped_storage()
                    self._devices[storage._cdata] = (StorageWeakRef(storage), made_on)
        return out

    def _checked(self, func: Any, args: Any, kwargs: Any) -> set[torch.device]:
        """The devices of a call's tensors.

        Raises:
            RuntimeError: it mixes them.
        """
        if func in _INDEXED:
            indices = {self.device_of(tensor) for tensor in _tensors(args[1])}
            own = self.device_of(args[0])
            if own == CPU and CUDA in indices:
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            args = (args[0], *args[2:])
        tensors = _tensors((args, kwargs))
        # Numbers on the CPU go with tensors of every device.
        devices = {device for tensor in tensors if (device := self.device_of(tensor)) is not None}
        of_arrays = {self.device_of(tensor) for tensor in tensors if tensor.dim() > 0} - {None}
        if func not in _COPIES and (len(of_arrays) > 1 or (CUDA in devices and of_arrays == {CPU})):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu, in {func}")
        generator = kwargs.get("generator")
        wanted = kwargs.get("device")
        if generator is not None and wanted is not None and torch.device(wanted).type != generator.device.type:
            raise RuntimeError(f"Expected a '{torch.device(wanted).type}' device type for generator")
        return devices


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def _without_device(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[torch.device | None, Any, dict[str, Any]]:
    """The device that a call names, and its arguments with the CPU in its place."""
    target: torch.device | None = None

    def replaced(value: Any) -> Any:
        nonlocal target
        is_name = isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda")
        if isinstance(value, torch.device) or is_name:
            target = CUDA if torch.device(value).type == "cuda" else CPU
            return CPU
        return value

    if func is Tensor.to:
        args = (args[0], *map(replaced, args[1:]))
    if kwargs.get("device") is not None:
        kwargs["device"] = replaced(kwargs["device"])
    return target, args, kwargs
