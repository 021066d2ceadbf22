"""Score embeddings by retrieval: vectors and labels in, numbers out.

Knows neither models nor datasets. `evaluate` is all that most callers need; the modules beneath it:

- `cosine`: unit vectors whose cosines are exact, the same on every machine
- `poincare`: the same for hyperbolic distances
- `distances`: both by name
- `labels`: any hashables to class numbers, and which query is which gallery row
- `neighbours`: exact nearest neighbours, tile by tile
- `metrics`: Recall@k, MAP@R and R-Precision of every query
- `protocol`: separate, harmonic and unified scores of several datasets
"""

from __future__ import annotations

from unimetric.evaluation.neighbours import nearest_neighbours
from unimetric.evaluation.protocol import evaluate
from unimetric.evaluation.report import Report

__all__ = ["Report", "evaluate", "nearest_neighbours"]
