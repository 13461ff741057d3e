"""The course's command line: `python -m course_utils doctor | fetch | notebooks | new | grade | study | bench`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from course_utils.errors import CourseError

#: Command → the module whose `main` it runs, and what the help says.
COMMANDS = {
    "my-labs": ("workshop.authoring.my_labs", "your own copies of the labs: bring them up to date, or start one over"),
    "notebooks": ("workshop.authoring.notebooks", "write and run the labs and solutions"),
    "publish-as": ("workshop.authoring.publish_as", "give the course its public address on GitHub"),
    "rooms": ("workshop.authoring.rooms", "print the rooms of the library and the arrows between them"),
    "new": ("workshop.authoring.new_chapter", "start a chapter"),
    "grade": ("workshop.grading.command", "grade a class's notebooks"),
    "student-copy": ("workshop.authoring.student_copy", "copy the course without its solutions"),
    "nbgrader": ("workshop.grading.nbgrader", "write the labs as nbgrader's sources"),
    "export": ("workshop.experiments.case_study.export_winner", "write the case study's model as ONNX"),
    "train": ("training.command_line", "train one method, in one process or several"),
    "study": ("workshop.experiments.quality", "compare methods over several seeds"),
    "study-activations": ("workshop.experiments.activations", "what the forward pass keeps, by attention"),
    "study-case": ("workshop.experiments.case_study.study", "the case study, from the search to the exported model"),
    "study-comparison": ("workshop.experiments.comparison", "all methods beside each other, with their costs"),
    "study-data": ("workshop.experiments.data", "what the chapter on data measures"),
    "study-distillation": ("workshop.experiments.distillation", "students of one teacher"),
    "study-features": ("workshop.experiments.features", "what a frozen body already knows, read in three places"),
    "study-few-shot": ("workshop.experiments.few_shot_distillation", "few labels and a teacher"),
    "study-evaluation": ("workshop.experiments.evaluation", "what one test split can say"),
    "study-llama": ("workshop.experiments.llama", "a Llama model before and after each method"),
    "study-optimizers": ("workshop.experiments.parameters_losses_optimisers", "what chapter 2 measures"),
    "study-published": ("workshop.experiments.published", "copy what the pages quote from peft's own comparison"),
    "study-quantization": ("workshop.experiments.qlora", "what 4 bits cost"),
    "study-serving": ("workshop.experiments.serving", "what it costs to serve a tuned model"),
    "study-scaling": ("workshop.experiments.scaling_out", "several processes, and memory beside the rule"),
    "study-training": ("workshop.experiments.training_loop", "what the chapter on the training loop measures"),
    "study-variations": ("workshop.experiments.variations", "one setting of a method at a time"),
    "bench": ("workshop.experiments.bench", "time and memory against peft"),
    "race": ("workshop.experiments.race", "seconds to a tuned model, against transformers' Trainer"),
    "bench-large": ("workshop.experiments.bench_large", "the same with a Llama of 7 billion weights, on a GPU"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 when all went well, 1 when not, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m course_utils", description="The course's own tools.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="check this computer and say how to mend what is wrong")
    fetching = commands.add_parser("fetch", help="download and verify the model and the data")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="which ones; default: all that every chapter needs")
    fetching.add_argument(
        "--all", action="store_true", help="everything, and unpacked: for a cache that a class shares"
    )
    fetching.add_argument("--pack", metavar="FOLDER", help="write them as archives for a release of the course, too")
    for command, (_, says) in COMMANDS.items():
        commands.add_parser(command, help=says, add_help=False)  # it reads its own options, --help too
    chosen, rest = parser.parse_known_args(arguments)
    if rest and chosen.command in ("doctor", "fetch"):
        parser.error(f"{chosen.command} does not know {' '.join(rest)}")

    # Each import stands where it is needed: doctor must run where the others cannot even be imported.
    if chosen.command == "doctor":
        from course_utils import doctor

        return doctor.main()
    if chosen.command == "fetch":
        return _fetch(chosen.names, chosen.all, chosen.pack)
    module, _ = COMMANDS[chosen.command]
    if module.startswith("workshop.") and not (Path(__file__).parent / "workshop").is_dir():
        print(
            f"{chosen.command}: this command needs the repository of the course, which an installed package lacks. "
            "Get the repository, and call the command in its folder.",
            file=sys.stderr,
        )
        return 1
    try:
        code: int = import_module(f"course_utils.{module}").main(rest)
    except CourseError as error:
        print(f"{chosen.command}: {error}", file=sys.stderr)
        return 1
    return code


def _fetch(names: list[str], everything: bool, pack_into: str | None) -> int:
    from course_utils.models.assets import ASSETS, AssetError, fetch, pack

    chosen = names or [name for name, asset in ASSETS.items() if everything or not asset.on_demand]
    try:
        for name in chosen:
            print(f"{name}: {fetch(name)}", flush=True)
            if everything and ASSETS[name].on_demand:
                from course_utils.models.backbones import prepare

                print(f"{name}, unpacked: {prepare(name)}", flush=True)
            if pack_into:
                print(f"{name}, packed: {pack(name, Path(pack_into))}", flush=True)
    except AssetError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
