"""Which device and which precision to compute in."""

from __future__ import annotations

import platform

import torch

from unimetric.errors import UserError, nearest_names

PRECISIONS = ("auto", "bf16", "fp32", "int8")
"""What a precision may be called; ``int8`` is for embedding on a CPU."""


def choose_device(accelerator: str = "auto") -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        UserError: the accelerator is not there.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if accelerator == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if present[name]))
    if not present.get(accelerator, False):
        usable = ", ".join(name for name, there in present.items() if there)
        raise UserError(f"--device.accelerator is {accelerator!r}: not usable on this machine; usable: auto, {usable}")
    return torch.device(accelerator)


def choose_precision(precision: str, device: torch.device) -> str:
    """``bf16``, ``fp32`` or ``int8`` for ``auto``, ``bf16``, ``fp32`` or ``int8``.

    ``auto`` is ``bf16`` on a processor with instructions for it; elsewhere bf16 would be emulated, and slower.

    Raises:
        UserError: another word, or ``int8`` on another device than a CPU.
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
    """The type of matrix products for ``auto``, ``bf16`` or ``fp32``.

    Raises:
        UserError: as `choose_precision`, or ``int8``, in which no gradient can be had.
    """
    chosen = choose_precision(precision, device)
    if chosen == "int8":
        raise UserError("--device.precision is 'int8', which is for embedding alone: train with auto, bf16 or fp32")
    return torch.bfloat16 if chosen == "bf16" else torch.float32


def overflows_in_int8() -> bool:
    """Return True if the processor adds products of 8 bits in 16 bits, as those of x86 without VNNI do."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.10
        return not torch.cpu._is_vnni_supported()
    capabilities = torch.cpu.get_capabilities()
    return not any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni"))


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.10
        return bool(torch.cpu._is_avx512_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
