"""The course's command line: `python -m course_utils doctor | fetch | notebooks | new | study | bench`."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 when all went well, 1 when not, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m course_utils", description="The course's own tools.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="check this computer and say how to mend what is wrong")
    fetching = commands.add_parser("fetch", help="download and verify the model and the data")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="which ones; default: all that every chapter needs")
    # These read their own options, --help too.
    commands.add_parser("notebooks", help="write and run the labs and solutions", add_help=False)
    commands.add_parser("new", help="start a chapter", add_help=False)
    commands.add_parser("study", help="compare methods over several seeds", add_help=False)
    commands.add_parser("study-data", help="what the chapter on data measures", add_help=False)
    commands.add_parser("study-evaluation", help="what one test split can say", add_help=False)
    commands.add_parser("study-optimizers", help="what chapter 2 measures", add_help=False)
    commands.add_parser("study-ranks", help="LoRA's rank against accuracy", add_help=False)
    commands.add_parser("study-training", help="what the chapter on the training loop measures", add_help=False)
    commands.add_parser("bench", help="time and memory against peft", add_help=False)
    chosen, rest = parser.parse_known_args(arguments)
    if rest and chosen.command in ("doctor", "fetch"):
        parser.error(f"{chosen.command} does not know {' '.join(rest)}")

    # Each import stands where it is needed: doctor must run where the others cannot even be imported.
    match chosen.command:
        case "doctor":
            from course_utils import doctor

            return doctor.main()
        case "fetch":
            return _fetch(chosen.names)
        case "notebooks":
            from course_utils import authoring

            return authoring.main(rest)
        case "new":
            from course_utils import new_chapter

            return new_chapter.main(rest)
        case "study":
            from course_utils import study

            return study.main(rest)
        case "study-data":
            from course_utils import study_data

            return study_data.main(rest)
        case "study-optimizers":
            from course_utils import study_optimizers

            return study_optimizers.main(rest)
        case "study-evaluation":
            from course_utils import study_evaluation

            return study_evaluation.main(rest)
        case "study-ranks":
            from course_utils import study_ranks

            return study_ranks.main(rest)
        case "study-training":
            from course_utils import study_training

            return study_training.main(rest)
        case _:
            from course_utils import bench

            return bench.main(rest)


def _fetch(names: list[str]) -> int:
    from course_utils.assets import ASSETS, AssetError, fetch

    try:
        for name in names or [name for name, asset in ASSETS.items() if not asset.on_demand]:
            print(f"{name}: {fetch(name)}", flush=True)
    except AssetError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
