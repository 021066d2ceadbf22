"""One embedding model for all image collections: train, evaluate and use PUMA on your own images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `Embedder`, and torch with it, only when somebody asks for it."""
    if name == "Embedder":
        from unimetric.models.embedder import Embedder

        return Embedder
    raise AttributeError(f"module 'unimetric' has no attribute {name!r}")
