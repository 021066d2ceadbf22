"""Score embeddings by retrieval: vectors and labels in, numbers out.

Knows neither models nor datasets. `evaluate` is all that most callers need; the modules beneath it:

- `cosine`: unit vectors whose cosines are exact, the same on every machine
- `euclidean`, `poincare`: the same for Euclidean and hyperbolic distances
- `distances`: all three by name
- `rows`: vectors in memory, or read part by part
- `labels`: any hashables to class numbers, and which query is which gallery row
- `neighbours`: exact nearest neighbours, tile by tile; `search`: how; `screen`: what float32 decides; `tiling`: sizes
- `metrics`: Recall@k, MAP@R and R-Precision of every query; `ranking`: its average precision
- `per_query`: what each query found
- `bootstrap`: intervals, and whether one run is better than another; `intervals`: those of a report
- `domains`: domain confusion and unified gap
- `spread`: alignment and uniformity
- `thresholds`: match or no match
- `worst`: the classes that are found worst
- `protocol`: separate, harmonic and unified scores of several datasets; `report`: all of the above in one
"""

from __future__ import annotations

from unimetric.evaluation.bootstrap import PairedComparison, paired_bootstrap
from unimetric.evaluation.labels import LabelWarning
from unimetric.evaluation.neighbours import nearest_neighbours
from unimetric.evaluation.per_query import PerQuery
from unimetric.evaluation.protocol import evaluate
from unimetric.evaluation.report import Report
from unimetric.evaluation.thresholds import Calibration, calibrate

__all__ = [
    "Calibration",
    "LabelWarning",
    "PairedComparison",
    "PerQuery",
    "Report",
    "calibrate",
    "evaluate",
    "nearest_neighbours",
    "paired_bootstrap",
]
