"""Which device and which precision to compute in."""

from __future__ import annotations

import torch

from unimetric.errors import UserError, nearest_names

PRECISIONS = ("auto", "bf16", "fp32")
"""What a precision may be called."""


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
    """``bf16`` or ``fp32`` for ``auto``, ``bf16`` or ``fp32``.

    ``auto`` is ``bf16`` on a processor with instructions for it; elsewhere bf16 would be emulated, and slower.

    Raises:
        UserError: another word.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; {nearest_names(precision, PRECISIONS)}")
    if precision != "auto":
        return precision
    return "bf16" if _has_bf16(device) else "fp32"


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of matrix products for ``auto``, ``bf16`` or ``fp32``."""
    return torch.bfloat16 if choose_precision(precision, device) == "bf16" else torch.float32


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.10
        return bool(torch.cpu._is_avx512_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
