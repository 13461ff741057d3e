"""Which answers a person should look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from course_utils.evaluation.calibration import (
    probabilities,
)

_KEPT = (1.0, 0.95, 0.9, 0.8)


def review_bound(logits: np.ndarray, kept: float) -> float:
    """The confidence below which a person should look, so that the model answers a share `kept` of such texts.

    Args:
        logits: of the **validation** split, (n, 2).
        kept: share of texts that the model answers alone, above 0 and at most 1.
    """
    if not 0 < kept <= 1:
        raise ValueError(f"kept is a share above 0 and at most 1, got {kept}")
    return float(np.quantile(probabilities(logits).max(axis=1), 1 - kept)) if kept < 1 else 0.0


def review(truth: Mapping[str, np.ndarray], logits: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """What is gained by handing the least sure texts to a person; the bound comes from validation.

    Args:
        truth: split → labels.
        logits: split → logits (n, 2).
    """
    rows = []
    confidence = probabilities(logits["test"]).max(axis=1)
    right = logits["test"].argmax(axis=1) == truth["test"]
    for kept in _KEPT:
        bound = review_bound(logits["validation"], kept)
        alone = confidence >= bound
        row = {"wanted": kept, "bound": bound, "kept": float(alone.mean()), "accuracy": float(right[alone].mean())}
        caught = int((~right & ~alone).sum())
        rows.append(row | {"to_person": int((~alone).sum()), "caught": caught, "errors": int((~right).sum())})
    return rows


def surest_errors(texts: Any, logits: np.ndarray, count: int = 8) -> list[dict[str, Any]]:
    """The wrong answers of which the model was surest.

    Args:
        texts: rows with `text`, `label`, `rating`, `soft_label`.
        logits: (n, 2), in the same order.
        count: how many.
    """
    probability = probabilities(logits)
    labels = np.array(texts["label"])
    wrong = np.flatnonzero(probability.argmax(axis=1) != labels)
    order = wrong[np.argsort(-probability[wrong].max(axis=1))][:count]
    return [
        {
            "text": texts[int(i)]["text"],
            "label": ("negative", "positive")[labels[i]],
            "rating": texts[int(i)]["rating"],
            "positive_votes": texts[int(i)]["soft_label"],
            "confidence": float(probability[i].max()),
        }
        for i in order
    ]
