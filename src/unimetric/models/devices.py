"""Choice of device and precision."""

import platform

import torch

from unimetric.errors import UserError, nearest_names

PRECISIONS = ("auto", "bf16", "fp32", "int8")
"""Valid precisions; ``int8`` is for embedding on a CPU."""


def choose_device(accelerator: str = "auto") -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``mps``; a `UserError` if the accelerator is absent."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if accelerator == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if present[name]))
    if not present.get(accelerator, False):
        usable = ", ".join(name for name, there in present.items() if there)
        raise UserError(f"--device.accelerator is {accelerator!r}: not usable on this machine; usable: auto, {usable}")
    return torch.device(accelerator)


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve ``auto`` and check a precision; return ``bf16``, ``fp32`` or ``int8``.

    ``auto`` is ``bf16`` on a processor with instructions for it, else ``fp32``, because emulated bf16 is slower.

    Raises:
        UserError: an unknown precision, or ``int8`` on a device other than a CPU.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; {nearest_names(precision, PRECISIONS)}")
    if precision == "int8" and device.type != "cpu":
        raise UserError(
            f"--device.precision is 'int8', which is computed on a CPU alone, not on {device.type}: add "
            "--device.accelerator cpu, or leave it out"
        )
    if precision != "auto":
        return precision
    return "bf16" if _has_bf16(device) else "fp32"


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of matrix products for ``auto``, ``bf16`` or ``fp32``."""
    chosen = choose_precision(precision, device)
    if chosen == "int8":
        raise UserError("--device.precision is 'int8', which is for embedding alone: train with auto, bf16 or fp32")
    return torch.bfloat16 if chosen == "bf16" else torch.float32


def overflows_in_int8() -> bool:
    """Return True if the processor adds 8-bit products in 16 bits, as x86 processors without VNNI do."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.10
        return not torch.cpu._is_vnni_supported()
    return not _has_one_of("avx512_vnni", "avx_vnni")


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.10
        return bool(torch.cpu._is_avx512_bf16_supported())
    return _has_one_of("avx512_bf16", "amx_bf16", "bf16")


def _has_one_of(*names: str) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in names)
