"""Export the model that the case study chose, with its card: `python -m course_utils export FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from course_utils.data import splits
from course_utils.serving.exporting import export, to_int8


def main(arguments: list[str]) -> int:
    """Export the chosen model; it is trained first if the cache does not hold it."""
    parser = argparse.ArgumentParser(prog="python -m course_utils export", description=__doc__)
    parser.add_argument("folder", type=Path, help="is created")
    options = parser.parse_args(arguments)

    from course_utils.evaluation import results
    from course_utils.methods import merge
    from course_utils.serving.cards import model_card
    from course_utils.training.recipes import trained
    from course_utils.workshop.experiments.case_study import study as study_case

    try:
        recipe = study_case.winner()
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 1
    stored = results.read(study_case.NAME)
    model, tokenizer, _ = trained(recipe, splits.load_sentiment("tweets"), seed=0)
    bound = next(row["bound"] for row in stored["test"]["review"] if row["wanted"] == 0.9)
    folder = export(merge(model), tokenizer, options.folder, bound)
    to_int8(folder)
    (folder / "README.md").write_text(model_card(stored), "utf-8")
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0
