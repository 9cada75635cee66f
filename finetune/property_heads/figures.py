"""Error figures for the predictions of a head, and for a trivial guess."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr


# relative differences below this are rounding
SAME = 1e-9


def number_figures(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Errors of numbers (M,); vectors are given component by component.

    `mae`, `rmse`, `spread` (the standard deviation of the labels), and Pearson's `r` if predictions
    and labels both vary.
    """
    error = predicted - labels
    figures = {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "spread": float(labels.std()),
    }
    # a repeated mean varies only by rounding
    if min(predicted.std(), labels.std()) > SAME * np.abs(labels).max():
        figures["r"] = float(np.corrcoef(predicted, labels)[0, 1])
    return figures


def relative_figures(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Errors of tensors (S, 3, 3): `relative`, the mean of |error| / |label|, with Frobenius norms.

    Tensors with a label of zero are left out; the result is empty if there are no others.
    """
    error = np.linalg.norm(predicted - labels, axis=(1, 2))
    size = np.linalg.norm(labels, axis=(1, 2))
    has_size = size > 0
    if not has_size.any():
        return {}
    return {"relative": float((error[has_size] / size[has_size]).mean())}


def sign_figures(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`sign`, the share of numbers (S,) with the sign of their label.

    A prediction of zero counts as half right. Labels of zero are left out; the result is empty if
    there are no others.
    """
    has_sign = labels != 0
    if not has_sign.any():
        return {}
    right = 0.5 * (1 + np.sign(predicted) * np.sign(labels))
    return {"sign": float(right[has_sign].mean())}


def spread_figures(errors: np.ndarray, spreads: np.ndarray) -> dict[str, float]:
    """Quality of predicted spreads (M,) for errors (M,); entries with NaN are left out.

    `within_spread`: the share of errors below their spread, 0.68 for normally distributed errors.
    `gain_by_spread`: the gain in mean log-likelihood of the errors over a single spread for all,
    which is the RMS of these errors.
    `spread_rank`: the rank correlation of spreads and absolute errors, if both vary.
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
    """Quality of predicted probabilities (S, K) for classes (S,), the indices of the true classes.

    `accuracy`; `balanced`, the mean accuracy over the classes; and `log_loss`, the mean negative
    logarithm of the probability of the true class.
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
    """Labels or predictions of all structures, flattened and concatenated."""
    return np.concatenate([np.ravel(value) for value in values])
