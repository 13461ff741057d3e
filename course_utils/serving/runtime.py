"""Answer with an exported model. Needs numpy, tokenizers and onnxruntime; neither torch nor transformers.

The folder holds everything that decides an answer: `model.onnx` (and `model.int8.onnx`), `tokenizer.json`, and
`settings.json` with the labels, the cleaning, the longest text, and the confidence below which a person should look.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from course_utils.errors import CourseError

SETTINGS = "settings.json"
MODELS = {"float32": "model.onnx", "int8": "model.int8.onnx"}


class ServeError(CourseError, ValueError):
    """The model cannot be loaded, or cannot answer."""


@dataclass(frozen=True)
class Answer:
    """What the model says about one text.

    Args:
        label: "negative" or "positive".
        confidence: the probability of that label, from 0.5 to 1.
        ask_a_person: the model is less sure than it has to be to answer alone.
    """

    label: str
    confidence: float
    ask_a_person: bool


class Classifier:
    """An exported model, ready to answer.

    Args:
        folder: as `export` writes it.
        kind: "float32" or "int8".
        threads: processor threads of one answer.

    Raises:
        ServeError: there is no such kind, or a file is missing or broken.
    """

    def __init__(self, folder: str | Path, kind: str = "float32", threads: int = 1) -> None:
        if kind not in MODELS:
            raise ServeError(f"there is no kind {kind!r}; choose one of {', '.join(MODELS)}")
        self.folder = Path(folder)
        missing = [name for name in (MODELS[kind], "tokenizer.json", SETTINGS) if not (self.folder / name).is_file()]
        if missing:
            raise ServeError(
                f"{self.folder} holds no {', '.join(missing)}; write the folder with: "
                f"python -m course_utils.serving.exporting {self.folder}"
            )
        self.settings = json.loads((self.folder / SETTINGS).read_text("utf-8"))
        self.cleaning = [(re.compile(old, re.IGNORECASE), new) for old, new in self.settings["cleaning"]]
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.enable_padding(pad_id=self.settings["pad_id"], pad_token=self.settings["pad_token"])
        self.tokenizer.enable_truncation(self.settings["max_length"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                str(self.folder / MODELS[kind]), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own classes differ between versions
            raise ServeError(f"{self.folder / MODELS[kind]} is no model that onnxruntime can run: {error}") from error

    def clean(self, text: str) -> str:
        """The cleaning of the training texts (`course_utils.data.clean_text`), from the settings."""
        text = html.unescape(html.unescape(text))
        for old, new in self.cleaning:
            text = old.sub(new, text)
        return " ".join(text.split())

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """The logits (n, 2).

        Raises:
            ServeError: a text is empty after cleaning.
        """
        cleaned = [self.clean(text) for text in texts]
        if not cleaned or not all(cleaned):
            raise ServeError("expected at least one text, and none of them empty")
        encoded = self.tokenizer.encode_batch(cleaned)
        batch = {
            "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
        }
        return self.run(batch)

    def run(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """The logits of token ids and mask, both (n, tokens)."""
        return np.asarray(self.session.run(["logits"], batch)[0])

    def answer(self, text: str) -> Answer:
        """Label, confidence, and whether a person should look."""
        logits = self.logits([text])[0].astype(float)
        probability = np.exp(logits - logits.max())
        probability /= probability.sum()
        best = int(probability.argmax())
        confidence = float(probability[best])
        return Answer(self.settings["labels"][best], confidence, confidence < self.settings["review_below"])
