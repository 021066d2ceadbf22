"""One embedding model for all image collections: train, evaluate and use PUMA on your own images."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unimetric.cpu import configure_openmp
from unimetric.errors import UserError

if TYPE_CHECKING:
    from unimetric import evaluation
    from unimetric.models.embedder import Embedder

configure_openmp()

__version__ = "0.1.0"
__all__ = ["Embedder", "UserError", "__version__", "evaluation"]


def __getattr__(name: str) -> Any:
    """Load `Embedder` and `evaluation`, and torch with them, on first access."""
    if name == "Embedder":
        from unimetric.models.embedder import Embedder

        return Embedder
    if name == "evaluation":
        return import_module("unimetric.evaluation")
    raise AttributeError(f"module 'unimetric' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
