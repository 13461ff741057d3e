"""A page in the browser that asks the exported model: `make demo`.

It runs without torch and transformers, in an environment of its own (`demo-requirements.txt`): what serves a model need
not know how it was trained.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from course_utils.serving.runtime import MODELS, Classifier, ServeError

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the page asks nothing of the network

EXAMPLES = ("this is the best day ever :)", "I can't say that I liked it", "oh great, it rains again")


def respond(classifier: Classifier, text: str) -> tuple[dict[str, float], str]:
    """What the page shows for a text: the probability of each label, and a sentence.

    Args:
        classifier: the exported model.
        text: as typed.
    """
    try:
        answer = classifier.answer(text)
    except ServeError:
        return {}, "Write a text first."
    other = next(label for label in classifier.settings["labels"] if label != answer.label)
    shares = {answer.label: answer.confidence, other: 1 - answer.confidence}
    return shares, "A person should look at this one." if answer.ask_a_person else "Sure enough to answer alone."


def page(classifier: Classifier) -> Any:
    """The page, not yet started."""
    import gradio

    return gradio.Interface(
        fn=lambda text: respond(classifier, text),
        inputs=gradio.Textbox(label="A comment in English", lines=2),
        outputs=[gradio.Label(label="Sentiment"), gradio.Textbox(label="Advice")],
        examples=[[text] for text in EXAMPLES],
        cache_examples=False,
        flagging_mode="never",
        title="Is this comment positive?",
        description="A small BERT with LoRA, merged, exported to ONNX. For English tweets; irony may mislead it.",
        api_name="classify",
    )


def main(arguments: list[str]) -> int:
    """Start the page on this computer and wait until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m course_utils.serving.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="as course_utils.serving.exporting writes it")
    parser.add_argument("--kind", choices=tuple(MODELS), default="float32")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parser.parse_args(arguments)
    try:
        classifier = Classifier(options.folder, options.kind)
    except ServeError as error:
        print(error, file=sys.stderr)
        return 1
    page(classifier).launch(server_name="127.0.0.1", server_port=options.port, share=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
