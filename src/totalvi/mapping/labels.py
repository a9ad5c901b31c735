"""Labels of reference cells given to query cells, with probabilities that are calibrated."""

from typing import NamedTuple

import numpy as np

from totalvi.mapping.comparison import Neighbours

_TEMPERATURES = np.geomspace(0.5, 100, 16)
_DOUBTS = np.array([1e-3, 3e-3, 1e-2, 3e-2, 0.1])
_BINS = 15


class Calibration(NamedTuple):
    """How weights of neighbours become probabilities.

    Parameters
    ----------
    temperature
        Weights are the overlap of the posteriors to the power 1 / temperature.
    doubt
        Share of the probability that is spread over the labels by how frequent they are.
    """

    temperature: float
    doubt: float


def label_probabilities(
    neighbours: Neighbours, code: np.ndarray, n_labels: int, calibration: Calibration
) -> np.ndarray:
    """Return the probability of each label for each cell, (N, labels).

    Parameters
    ----------
    code
        Label of each reference cell, (reference cells,).
    """
    log_weight = neighbours.log_overlap.astype(np.float64) / calibration.temperature
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    n_cells = len(weight)
    cell = np.repeat(np.arange(n_cells), weight.shape[1])
    place = cell * n_labels + code[neighbours.cells].ravel()
    votes = np.bincount(place, weight.ravel(), minlength=n_cells * n_labels)
    frequency = np.bincount(code, minlength=n_labels) / len(code)
    shares = votes.reshape(n_cells, n_labels)
    result: np.ndarray = (1 - calibration.doubt) * shares + calibration.doubt * frequency
    return result


def calibrate(
    neighbours: Neighbours, code: np.ndarray, truth: np.ndarray, n_labels: int
) -> Calibration:
    """Choose temperature and doubt that make the labels of held-out cells most probable.

    Parameters
    ----------
    neighbours
        Of the held-out cells.
    code, truth
        Labels of the reference cells, and of the held-out cells.
    """
    best, lowest = Calibration(1.0, float(_DOUBTS[0])), np.inf
    for temperature in _TEMPERATURES:
        shares = label_probabilities(neighbours, code, n_labels, Calibration(temperature, 0.0))
        frequency = np.bincount(code, minlength=n_labels) / len(code)
        right, expected = shares[np.arange(len(truth)), truth], frequency[truth]
        for doubt in _DOUBTS:
            chance = np.maximum((1 - doubt) * right + doubt * expected, 1e-12)
            loss = -float(np.log(chance).mean())
            if loss < lowest:
                best, lowest = Calibration(float(temperature), float(doubt)), loss
    return best


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the expected calibration error: how far the probability of the label given lies from how
    often it is right, averaged over cells in 15 bins of equally many cells.

    Examples
    --------
    >>> sure = np.array([[0.9, 0.1]] * 10)
    >>> round(calibration_error(sure, np.array([0] * 9 + [1])), 3)
    0.0
    """
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    order = np.argsort(top, kind="stable")
    if len(order) < _BINS * 10:
        return float(abs(top.mean() - right.mean()))
    gaps = [
        len(cells) * abs(top[cells].mean() - right[cells].mean())
        for cells in np.array_split(order, _BINS)
    ]
    return float(sum(gaps) / len(order))
