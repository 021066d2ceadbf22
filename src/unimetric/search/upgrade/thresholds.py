"""The new model's thresholds for a gallery of which a part is moved by a map.

Wrong answers from moved rows have other scores than those from embedded ones. The same searches among the same images,
once embedded and once moved, show by how much; every threshold is shifted by that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_SEARCHES = 100
"""With fewer searches nothing is shifted."""


def shifted(
    calibration: Mapping[str, Any], embedded: NDArray[np.floating], moved: NDArray[np.floating], share: float
) -> dict[str, Any]:
    """Return a calibration with the thresholds of a mixed gallery, and without sets, which nothing guarantees there.

    Args:
        calibration: As `Calibration.to_dict`, of the new model.
        embedded: The scores of wrong best answers among embedded images, [Q].
        moved: The same searches' among the same images, moved by the map, [Q].
        share: Share of the database's rows that are moved, from 0 to 1.
    """
    usable = np.isfinite(embedded) & np.isfinite(moved)
    enough = usable.sum() >= FEWEST_SEARCHES
    shift = _Shift(np.sort(embedded[usable]), np.sort(moved[usable]), share) if enough else None

    def mixed(part: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in part.items() if name != "sets"}
        return kept if shift is None else shift.gallery(kept)

    parts = {name: mixed(part) for name, part in calibration["separate"].items()}
    return {**calibration, "unified": mixed(calibration["unified"]), "separate": parts}


class _Shift:
    def __init__(self, embedded: NDArray[np.floating], moved: NDArray[np.floating], share: float) -> None:
        self._embedded, self._moved, self._share = embedded, moved, share

    def of(self, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the shift of the threshold of each rate; that of the extreme scores is the next measurable one's."""
        least = 3 / len(self._embedded)
        places = 1 - np.clip(rates, least, 1 - least)
        shift: NDArray[np.float64] = np.quantile(self._moved, places) - np.quantile(self._embedded, places)
        return self._share * shift

    def gallery(self, part: Mapping[str, Any]) -> dict[str, Any]:
        points = [
            point
            if point["threshold"] is None
            else {**point, "threshold": float(point["threshold"] + self.of(np.array(point["wanted_false_match_rate"])))}
            for point in part["operating_points"]
        ]
        moved = {**part, "operating_points": points}
        roc, answers = part["roc"], part.get("answers")
        if roc is not None:
            rates = np.asarray(roc["false_match_rates"], np.float64)
            moved["roc"] = {**roc, "thresholds": self._moved_scores(roc["thresholds"], rates)}
            if answers is not None:
                at = np.interp(answers["scores"], roc["thresholds"], rates)
                moved["answers"] = {**answers, "scores": self._moved_scores(answers["scores"], at)}
        return moved

    def _moved_scores(self, scores: Sequence[float], rates: NDArray[np.float64]) -> list[float]:
        """Return ascending scores with these false-match rates, shifted and still ascending."""
        moved: list[float] = np.maximum.accumulate(np.asarray(scores) + self.of(rates)).tolist()
        return moved
