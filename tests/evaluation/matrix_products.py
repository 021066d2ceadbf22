"""A record of the matrix products and of how much else is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Product:
    """One product of two matrices: rows by columns."""

    rows: int
    columns: int
    dtype: torch.dtype
    settings: Sequence[str] = ()

    @property
    def size(self) -> int:
        return self.rows * self.columns


class Products(TorchDispatchMode):
    """Records every product of two matrices in its block, each with what ``settings`` returns meanwhile."""

    def __init__(self, settings: Callable[[], Sequence[str]] = tuple) -> None:
        super().__init__()
        self.settings = settings
        self.all: list[Product] = []
        self.numbers: Counter[torch.dtype] = Counter()
        """Of each type, the numbers that operations have computed."""

    def of(self, dtype: torch.dtype) -> list[Product]:
        return [product for product in self.all if product.dtype == dtype]

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor):
            self.numbers[result.dtype] += result.numel()
        if operation.overloadpacket == torch.ops.aten.mm:
            left, right = arguments[:2]
            self.all.append(Product(len(left), right.shape[1], result.dtype, self.settings()))
        return result
