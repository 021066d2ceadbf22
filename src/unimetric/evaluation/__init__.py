"""Score embeddings by retrieval: vectors and labels in, numbers out.

Most callers need `evaluate` alone. The modules, each importing only those above it:

- `labels`: hashables of any type to class numbers, and the gallery row of each query's own image
- `vectors`: checks of embeddings, and their preparation block by block
- `distances`, `poincare`: cosine, Euclidean and hyperbolic distances that are the same on every machine
- `rows`: prepared rows in memory or read part by part, and the sizes of tiles
- `screen`: float32 products that leave few candidates; `top_k`: the exact search, tile by tile
- `neighbours`: exact nearest neighbours
- `per_query`: the results of each query
- `metrics`: Recall@k, MAP@R, R-Precision and average precision of every query
- `statistics`: confidence intervals, comparisons of runs, alignment and uniformity
- `opis`: how differently one threshold treats the classes
- `thresholds`: match or no match
- `report`: all of the above in one report
- `protocol`: separate, harmonic and unified scores of several datasets
- `evaluate_split`: from a model and the items of a split to a report
"""

from unimetric.evaluation.labels import LabelWarning
from unimetric.evaluation.neighbours import nearest_neighbours
from unimetric.evaluation.per_query import PerQuery
from unimetric.evaluation.protocol import CopyWarning, evaluate
from unimetric.evaluation.report import Report
from unimetric.evaluation.statistics import PairedComparison, paired_bootstrap
from unimetric.evaluation.thresholds import Calibration, calibrate

__all__ = [
    "Calibration",
    "CopyWarning",
    "LabelWarning",
    "PairedComparison",
    "PerQuery",
    "Report",
    "calibrate",
    "evaluate",
    "nearest_neighbours",
    "paired_bootstrap",
]
