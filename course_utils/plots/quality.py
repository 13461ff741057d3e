"""Figures of the study: what the methods reach on the tweets."""

from __future__ import annotations

from course_utils import results
from course_utils.plots.base import Picture, bars


def ways_to_a_classifier() -> Picture:
    """The study's test accuracies: baselines, from scratch, head only, LoRA and full fine-tuning."""
    quality = results.read("quality")
    values = {
        "always the majority class": quality["baselines"]["majority"],
        "from scratch": quality["methods"]["scratch"]["accuracy"]["mean"],
        "head only (feature extraction)": quality["methods"]["head_only"]["accuracy"]["mean"],
        "word counts (TF-IDF)": quality["baselines"]["tfidf"],
        "LoRA (PEFT)": quality["methods"]["lora"]["accuracy"]["mean"],
        "full fine-tuning": quality["methods"]["full"]["accuracy"]["mean"],
    }
    return bars(values, "test accuracy on the tweets", quality["baselines"]["majority"])
