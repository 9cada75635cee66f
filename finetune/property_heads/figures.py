"""Errors of a head on structures that it was not fitted to, and those of a trivial guess."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr


# relative; below it numbers differ by rounding
SAME = 1e-9


def number_figures(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Errors of numbers (M,); vectors come component by component.

    `mae`, `rmse`, `spread` of the labels (their standard deviation), and Pearson's `r` where both
    vary.
    """
    error = predicted - labels
    figures = {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "spread": float(labels.std()),
    }
    # a mean that is repeated varies by its rounding only
    if min(predicted.std(), labels.std()) > SAME * np.abs(labels).max():
        figures["r"] = float(np.corrcoef(predicted, labels)[0, 1])
    return figures


def relative_figures(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Errors of tensors (S, 3, 3): `relative`, the mean over the structures of |error| / |label|.

    The norms are those of Frobenius. Structures whose label is zero are left out.
    """
    error = np.linalg.norm(predicted - labels, axis=(1, 2))
    size = np.linalg.norm(labels, axis=(1, 2))
    has_size = size > 0
    if not has_size.any():
        return {}
    return {"relative": float((error[has_size] / size[has_size]).mean())}


def sign_figures(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`sign`, the share of numbers (S,) with the sign of their label; labels of zero are left out.

    A sign that is not predicted is right in half of the cases.
    """
    has_sign = labels != 0
    if not has_sign.any():
        return {}
    right = 0.5 * (1 + np.sign(predicted) * np.sign(labels))
    return {"sign": float(right[has_sign].mean())}


def spread_figures(errors: np.ndarray, spreads: np.ndarray) -> dict[str, float]:
    """Figures of the spreads (M,) that a head gave for errors (M,), NaN where there is no label.

    `within_spread`, the share of errors below their spread, 0.68 for errors of a normal
    distribution; `spread_rank`, the rank correlation of both; `gain_by_spread`, how much larger the
    mean logarithm of the density of the errors is with these spreads than with one for all, chosen
    with the errors in view.
    """
    is_known = np.isfinite(errors) & np.isfinite(spreads)
    errors = errors[is_known]
    spreads = spreads[is_known]
    standard = errors / spreads
    one_for_all = max(float(np.sqrt((errors**2).mean())), np.finfo(float).tiny)
    gain = np.log(one_for_all / spreads) + 0.5 * (1.0 - standard**2)
    figures = {
        "within_spread": float((np.abs(standard) < 1).mean()),
        "gain_by_spread": float(gain.mean()),
    }
    if min(spreads.std(), np.abs(errors).std()) > SAME * spreads.max():
        figures["spread_rank"] = float(spearmanr(np.abs(errors), spreads).statistic)
    return figures


def class_figures(probabilities: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Figures of probabilities (S, K) for structures of the classes (S,).

    `accuracy`; `balanced`, the mean over the classes of the share that was found; and `log_loss`,
    the mean of minus the logarithm of the probability of the class.
    """
    right = probabilities.argmax(axis=1) == classes
    found = [right[classes == own].mean() for own in np.unique(classes)]
    of_label = probabilities[np.arange(len(classes)), classes]
    return {
        "accuracy": float(right.mean()),
        "balanced": float(np.mean(found)),
        "log_loss": float(-np.log(np.maximum(of_label, np.finfo(float).tiny)).mean()),
    }


def flat(values: list[Any]) -> np.ndarray:
    """Labels or predictions of all structures end to end."""
    return np.concatenate([np.ravel(value) for value in values])
