"""The sources of the pages: spelling, one kind of English, and code blocks that do what they say.

A fenced block of a page is one of these:

* `python`: it runs. All such blocks of a page run in order in one namespace, in a real process.
* `{code-block} python` with `:class: does-not-run`: a deliberate mistake, or something with a placeholder. Its caption
  begins with "Does not run: " and the error (`ValueError: rank must be`), and then the block must raise just that; or
  with "Does not run as it stands: " and the reason, and then it is only compiled.
* `bash`, `powershell`: each command, target, subcommand and file in it exists.
* `text`, `markdown`, `json`, `yaml`, `toml`: output or a file's content. A block without a language is an error.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from course_utils.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
BOOK = sorted((ROOT / "book").glob("*.md"))
TEXTS = [*BOOK, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
SOLUTIONS = sorted((ROOT / "solutions").glob("*.py"))
LIBRARY = sorted([*(ROOT / "course_utils").rglob("*.py"), *(ROOT / "book" / "_ext").glob("*.py")])
#: Content or output, which nothing can run.
SHOWN = {"text", "markdown", "json", "yaml", "toml", "bibtex", "diff"}
#: Of the processor, for the blocks of one page.
SECONDS = 60


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- spelling --------------------------------------------------------------------------------------------------------


def test_spelling() -> None:
    """codespell's list of common misspellings; `tests/spelling.txt` holds words that are meant."""
    command = [sys.executable, "-m", "codespell_lib", "--ignore-words", str(ROOT / "tests" / "spelling.txt")]
    files = [str(path) for path in (*TEXTS, *SOLUTIONS, *LIBRARY)]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_allowed_word_is_superfluous() -> None:
    words = (ROOT / "tests" / "spelling.txt").read_text(encoding="utf-8").split()
    text = "\n".join(path.read_text(encoding="utf-8") for path in (*TEXTS, *SOLUTIONS, *LIBRARY))
    assert not [word for word in words if not re.search(rf"\b{word}\b", text, re.IGNORECASE)]


#: American → British. The part that is written otherwise is enough.
BRITISH = {
    r"(?<!size)\b(\w*)(optimi|initiali|quanti|normali|regulari|generali|summari|minimi|maximi|organi|recogni|speciali"
    r"|reali|utili|standardi|visuali|categori|characteri|emphasi|memori|parallel|parameteri|stabili|randomi|penali|seriali"
    r")z(e|ed|er|ers|es|ing|ation|ations)\b": "-ise, -isation",
    r"\banaly[z](e|ed|er|es|ing)\b": "analyse",
    r"\b(colo|behavio|favo|neighbo|labo|hono|rumo)r(s|ed|ing|ite|hood|al|able)?\b": "-our",
    r"\bcenter(s|ed|ing)?\b": "centre",
    r"\b(label|model|travel|cancel|channel|signal)(ed|ing|er)\b": "-lled, -lling",
    r"\bgr[a]y(s|ed|ish)?\b": "grey",
    r"\b(a|the|its|this|which|whose|under [a-z]+) license\b": "licence (the noun)",
    r"\bdefense\b": "defence",
    r"\bcatalog\b": "catalogue",
    r"\bwhile st\b": "while",
}
#: Names that only look like American prose.
NAMES = re.compile(r"tokeniz\w*|Hugging Face Optimizer")


def prose_of_markdown(text: str) -> str:
    """The prose with its lines kept: no code, formula, role, directive line, address or HTML."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    text = re.sub(r"\A---\n.*?\n---\n", blank, text, flags=re.DOTALL)
    # A directive's body is prose where it is an admonition, a picture or a dropdown; other fences hold code.
    fence = r"^(?P<f>`{3,})(?!\{(?:admonition|picture|dropdown|note|tip|warning|important)\}).*?^(?P=f)[ \t]*$"
    text = re.sub(fence, blank, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?:`{3,}|:{3,})\{.*$|^:[\w-]+:.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", blank, text, flags=re.DOTALL)
    text = re.sub(r"\{[\w:-]+\}`[^`]*`|``[^`]+``|`[^`]*`|\$[^$\n]*\$|<[^>\n]*>|https?://\S+", " ", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def prose_of_python(text: str) -> str:
    """The docstrings and comments of a module, and the Markdown cells of a lab, at their lines."""
    lines: list[str] = [""] * (text.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(%%|---|\+|type:|noqa|fmt:|mypy:)", token.string):
            lines[token.start[0]] = token.string.lstrip("#")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            document = node.body[0]
            assert isinstance(document, ast.Expr) and isinstance(document.value, ast.Constant)
            for offset, line in enumerate(without_literals(str(document.value.value).split("\n"))):
                lines[document.lineno + offset] = line
    # A lab's cells are Markdown, with fences of their own.
    return prose_of_markdown("\n".join(lines[1:]))


def without_literals(lines: list[str]) -> list[str]:
    """A docstring without what is code in it: the blocks after "::", and the names of arguments."""
    kept, outside = [], -1  # of the line that ends in "::", how far it is indented
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if outside >= 0 and line.strip() and indent <= outside:
            outside = -1
        kept.append("" if outside >= 0 else re.sub(r"^\s+[\w, ]+: ", "", line))
        if outside < 0 and line.rstrip().endswith("::"):
            outside = 0 if line is lines[0] else indent
    return kept


def americanisms(prose: str) -> list[str]:
    found = []
    for number, line in enumerate(prose.split("\n"), start=1):
        for pattern, british in BRITISH.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                if not NAMES.fullmatch(match[0]) and "_" not in match[0]:
                    found.append(f"{number}: {match[0]} → {british}")
    return found


@pytest.mark.parametrize("path", [*TEXTS, *SOLUTIONS, *LIBRARY], ids=short)
def test_prose_is_british(path: Path) -> None:
    """Identifiers stay as the libraries write them; what people read is spelt one way."""
    text = path.read_text(encoding="utf-8")
    assert not americanisms(prose_of_python(text) if path.suffix == ".py" else prose_of_markdown(text))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("We initialize the matrix.", 1),
        ("We initialise the matrix with `initialize()`, see {doc}`optimizer` and the tokenizer.", 0),
        ("```python\noptimizer = color\n```\nThe optimizer.", 1),
        ("```{admonition} Common\n:class: warning\nThe color of the model.\n```", 1),
        ("The model was labeled, and the neighbors are gray.", 3),
        ("It is a prize of the right size; we seize and analyse it under the licence.", 0),
        ("$optimizer$ and <span color>", 0),
    ],
)
def test_the_check_of_spelling_finds_what_it_should(text: str, wrong: int) -> None:
    assert len(americanisms(prose_of_markdown(text))) == wrong


def test_the_check_of_docstrings_reads_docstrings_and_comments_only() -> None:
    source = '"""We normalize."""\n\ncolor = "gray"  # a neighbor\n\n\ndef f() -> None:\n    """The center."""\n'
    assert [line.split(":")[0] for line in americanisms(prose_of_python(source))] == ["1", "3", "7"]


# --- code blocks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: where it starts, its language, options and content."""

    path: Path
    line: int
    language: str
    options: dict[str, str]
    code: str

    def __str__(self) -> str:
        return f"{short(self.path)}:{self.line}"

    @property
    def runs(self) -> bool:
        return "does-not-run" not in self.options.get("class", "").split()


def blocks_of(path: Path, text: str | None = None) -> list[Block]:
    """All fenced blocks with code; directives other than `code-block` are somebody else's."""
    lines = (path.read_text(encoding="utf-8") if text is None else text).split("\n")
    found, index = [], 0
    while index < len(lines):
        opened = re.match(r"^(\s*)(`{3,})\s*(\{[\w:-]+\})?\s*([\w+-]*)", lines[index])
        index += 1
        if not opened:
            continue
        indent, fence, directive, language = opened.groups()
        if directive and directive not in ("{code-block}", "{code}"):
            continue  # an admonition may hold fences of its own; other bodies hold none
        if not directive and not language and any(block_open(lines[: index - 1], fence)):
            continue  # the closing fence of a directive
        first, options = index, {}
        while index < len(lines) and not re.match(rf"^\s*{fence}\s*$", lines[index]):
            index += 1
        body = [line.removeprefix(indent) for line in lines[first:index]]
        while directive and body and (option := re.match(r":([\w-]+):\s*(.*)", body[0])):
            options[option[1]] = option[2].strip().strip("\"'")
            body.pop(0)
            first += 1
        found.append(Block(path, first + 1, language, options, "\n".join(body) + "\n"))
        index += 1
    return found


def block_open(before: list[str], fence: str) -> list[str]:
    """The directives with this fence that are still open."""
    stack: list[str] = []
    for line in before:
        if re.match(rf"^\s*{fence}\{{", line) or re.match(rf"^\s*{fence}\w", line):
            stack.append(line)
        elif re.match(rf"^\s*{fence}\s*$", line) and stack:
            stack.pop()
    return stack


BLOCKS = [block for path in TEXTS for block in blocks_of(path)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in {"python", "bash", "powershell", *SHOWN}, (
        f"{block}: the language {block.language!r} is none of those that tests/test_pages.py explains"
    )
    if block.language == "python":
        compile(block.code, str(block), "exec")
    if not block.runs:
        caption = block.options.get("caption", "")
        assert re.match(r"Does not run(: \S|\sas it stands: \S)", caption), f"{block}: the caption must say why"


def expected_error(block: Block) -> str | None:
    said = re.match(r"Does not run: `?([^`]*)`?", block.options.get("caption", ""))
    return said[1].rstrip(" .…") if said and not block.runs else None


@pytest.fixture(scope="session")
def run_page() -> Iterator[Callable[[str], dict[str, Any]]]:
    """Runs the Python blocks of a page, in one process for all pages that this core gets."""
    command = [sys.executable, str(ROOT / "tests" / "run_pages.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:

        def run(page: str) -> dict[str, Any]:
            assert process.stdin and process.stdout
            print(json.dumps([page, RUNNING.get(page, [])]), file=process.stdin, flush=True)
            answer = process.stdout.readline()
            assert answer, f"{page}: the process that runs the pages has ended"
            result: dict[str, Any] = json.loads(answer)
            return result

        yield run


WITH_PYTHON = sorted({short(block.path) for block in BLOCKS if block.language == "python"})
#: A page may hold nothing but blocks that are not to run.
RUNNING: dict[str, list[tuple[int, str, str | None]]] = {}
for block in BLOCKS:
    if block.language == "python" and (block.runs or expected_error(block)):
        RUNNING.setdefault(short(block.path), []).append((block.line, block.code, expected_error(block)))


@pytest.mark.spread
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page: str, run_page: Callable[[str], dict[str, Any]]) -> None:
    got = run_page(page)
    assert not got["troubles"], "\n".join(got["troubles"])
    assert got["seconds"] < SECONDS, f"{page}: its blocks take {got['seconds']} processor seconds, more than {SECONDS}"


RULES = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
TARGETS = {target for rule in RULES for target in rule.split()}
SUBCOMMANDS = {"doctor", "fetch", *COMMANDS}
#: Commands of a reader's computer that this one need not have.
OUTSIDE = {"apt", "cd", "conda", "git", "make", "mamba", "py", "python3", "source", "sudo", "export"}


def troubles_of_command(line: str) -> list[str]:
    """What a command line names that does not exist."""
    found = []
    line = re.sub(r"\.venv\\Scripts\\", ".venv/bin/", line)
    words = [word for word in shlex.split(line, comments=True, posix=True) if word]
    while words and re.fullmatch(r"(\$env:)?[A-Z_]+=.*|[$>]", words[0]):
        words.pop(0)
    if not words:
        return []
    command, *rest = words
    tool = command.removeprefix(".venv/bin/")
    known = bool(shutil.which(tool, path=str(Path(sys.executable).parent)))
    if command.startswith("."):
        known = (known and tool != command) or (ROOT / command).exists()
    else:
        known = known or tool in OUTSIDE
    if not known:
        found.append(f"there is no command {command}")
    if tool == "make":
        found += [f"make has no target {word}" for word in rest if "=" not in word and word not in TARGETS]
    if rest[:2] == ["-m", "course_utils"] and not {*rest[2:3]} & SUBCOMMANDS:
        found.append(f"course_utils has no command {' '.join(rest[2:3]) or '(none)'}")
    for word in rest:
        is_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word) and (
            "/" in word or re.search(r"\.(py|md|txt|ya?ml|toml|ipynb|json)$", word)
        )
        if is_path and not word.startswith(("-", ".venv")) and not (ROOT / word).exists():
            found.append(f"there is no file {word}")
    return found


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("bash", "powershell") and b.runs], ids=str)
def test_commands_name_what_exists(block: Block) -> None:
    commands = [part for line in block.code.split("\n") for part in re.split(r"&&|\|\||;|\|", line.split(" #")[0])]
    troubles = [trouble for part in commands if part.strip() for trouble in troubles_of_command(part.strip())]
    assert not troubles


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("make bok", "no target bok"),
        ("python -m course_utils studdy", "no command studdy"),
        (".venv/bin/rufff check", "no command .venv/bin/rufff"),
        (r".venv\Scripts\python -m pytest tests/test_nothing.py", "no file tests/test_nothing.py"),
        ("make notebooks ARGS=09_lora", ""),
        (".venv/bin/python -m course_utils study lora --again", ""),
    ],
)
def test_the_check_of_commands_finds_what_it_should(line: str, said: str) -> None:
    assert said in " ".join(troubles_of_command(line))
    assert bool(troubles_of_command(line)) == bool(said)


PAGE = """# Page

```python
a = 1
```

```{admonition} A mistake
:class: warning
Words.
```

```
nothing says what this is
```

```{code-block} python
:class: does-not-run
:caption: "Does not run: `ValueError: no.`"
raise ValueError("no.")
```

````markdown
```python
inner
```
````

:::{dropdown} More
```{code-block} python
:class: does-not-run
:caption: "Does not run as it stands: it needs a GPU."
cuda()
```
:::
"""


def troubles_of_calls(code: str) -> list[str]:
    """What cannot be right in a block that does not run here: names and keyword arguments of installed libraries.

    Follows `from x import y`, and the calls of these names: each keyword must be one that the signature knows.
    """
    names: dict[str, Any] = {}
    troubles = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and importlib.util.find_spec(node.module.split(".")[0]):
            try:
                module = importlib.import_module(node.module)
            except ModuleNotFoundError:  # a part of an installed library that needs another one, which is not
                continue
            for alias in node.names:
                if hasattr(module, alias.name):
                    names[alias.asname or alias.name] = getattr(module, alias.name)
                else:
                    troubles.append(f"{node.module} has no {alias.name}")
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in names:
            continue
        parameters = inspect.signature(names[node.func.id]).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters) and node.func.id not in OPEN:
            continue
        known = {parameter.name for parameter in parameters} | OPEN.get(node.func.id, set())
        troubles += [f"{node.func.id} has no {key.arg}" for key in node.keywords if key.arg and key.arg not in known]
    return troubles


#: calls that take any keyword, and would drop a misspelt one without an error: those that exist
OPEN: dict[str, set[str]] = {
    "BitsAndBytesConfig": {
        "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"
    },
}  # fmt: skip

CANNOT_RUN_HERE = [
    block
    for block in BLOCKS
    if block.language == "python" and not block.runs and "as it stands" in block.options.get("caption", "")
]


@pytest.mark.parametrize("block", CANNOT_RUN_HERE, ids=str)
def test_a_block_that_cannot_run_here_calls_what_exists(block: Block) -> None:
    assert not troubles_of_calls(block.code)


def test_calls_that_cannot_be_right_are_found() -> None:
    assert troubles_of_calls("from peft import LoraConfig, NoSuchConfig\nLoraConfig(r=8, rang=8)") == [
        "peft has no NoSuchConfig",
        "LoraConfig has no rang",
    ]
    code = "from transformers import BitsAndBytesConfig, TrainingArguments\n"
    assert troubles_of_calls(code + "BitsAndBytesConfig(load_in_4bits=True)") == [
        "BitsAndBytesConfig has no load_in_4bits"
    ]
    assert not troubles_of_calls(code + "TrainingArguments('out', learning_rate=2e-4, bf16=True)")


def test_a_recipe_says_its_learning_rate() -> None:
    """Without one `TrainingArguments` takes 5e-5, a rate for all weights: the fault that the pages warn of."""
    for block in BLOCKS:
        if block.language == "python" and "TrainingArguments(" in block.code and "peft" in block.code:
            assert "learning_rate" in block.code, block


def test_blocks_are_found() -> None:
    found = blocks_of(ROOT / "book" / "page.md", PAGE)
    assert [block.language for block in found] == ["python", "", "python", "markdown", "python"]
    assert [block.runs for block in found] == [True, True, False, True, False]
    assert [expected_error(block) for block in found] == [None, None, "ValueError: no", None, None]
    assert found[2].line == 19
    with pytest.raises(AssertionError, match=r"page\.md:13: the language ''"):
        test_a_block_says_what_it_is(found[1])


def test_a_block_that_fails_is_named(tmp_path: Path) -> None:
    pages = {
        "good.md": [
            (3, "a = 1\nopen('file', 'w').close()\n", None),
            (5, "import os\nos.system('echo said; cat')\ninput()\n", "EOFError"),  # and the next page is read
            (9, "assert a == 1\n1 / 0\n", "ZeroDivisionError"),
        ],
        "bad.md": [(5, "a\n", None)],
        "other.md": [(1, "raise ValueError('x')\n", "ValueError: y")],
        "runs.md": [(1, "1 + 1\n", "ValueError")],
    }
    command = [sys.executable, str(ROOT / "tests" / "run_pages.py")]
    lines = "".join(json.dumps(page) + "\n" for page in pages.items())
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, cwd=tmp_path)
    got = dict(zip(pages, map(json.loads, done.stdout.splitlines()), strict=True))
    assert got["good.md"]["troubles"] == []
    assert "bad.md:5: NameError" in got["bad.md"]["troubles"][0]
    assert "the page says 'ValueError: y', Python says 'ValueError: x'" in got["other.md"]["troubles"][0]
    assert "but the block runs" in got["runs.md"]["troubles"][0]
    assert not list(tmp_path.iterdir())


# --- names of the library --------------------------------------------------------------------------------------------

NAMING = [
    *TEXTS,
    *sorted((ROOT / "book" / "library").glob("*.md")),
    *sorted((ROOT / "course_utils").rglob("README.md")),
]
#: Files that a command makes, which stands beside the name.
TO_BE_MADE = re.compile(r"NN_name|my_lab\b|book/_build|tests/stages\.json")


def named_in(file: Path) -> list[str]:
    """What a module, or the stub of a front door, defines: at its top, in its classes and in its functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            found += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [target.id for target in targets if isinstance(target, ast.Name)]
    return found


def exists(name: str) -> bool:
    """Is this path there, or this module or object of the library (nothing is imported)?"""
    if "/" in name:
        return (ROOT / name).exists()
    place, steps = ROOT, name.split(".")
    while steps and (place / steps[0]).is_dir():
        place = place / steps.pop(0)
    if steps and (place / f"{steps[0]}.py").is_file():
        files = [place / f"{steps.pop(0)}.py"]
    else:
        files = [*place.glob("__init__.py*")]
    known = {found for file in files for found in named_in(file)}
    return set(steps) <= known


def missing(text: str) -> list[str]:
    """The paths and dotted names of a text that do not exist."""
    paths = re.findall(r"(?<![\w/.-])(?:course_utils|tests|solutions|labs|book)/[\w./-]*\w", text)
    dotted = re.findall(r"(?<![\w/.-])course_utils(?:\.\w+)+", text)
    return sorted({name for name in (*paths, *dotted) if not TO_BE_MADE.search(name) and not exists(name)})


@pytest.mark.parametrize("path", NAMING, ids=short)
def test_a_page_names_only_what_exists(path: Path) -> None:
    assert not missing(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("`course_utils/study.py`", ["course_utils/study.py"]),
        ("see course_utils.studies.runs.", ["course_utils.studies.runs"]),
        ("`course_utils.methods.lora.LoRALinear.backward`", ["course_utils.methods.lora.LoRALinear.backward"]),
        ("`course_utils.fitt` and `tests/test_page.py`", ["course_utils.fitt", "tests/test_page.py"]),
        ("`course_utils.methods.lora.LoRALinear.forward`, `course_utils.fit`, `course_utils/methods/`", []),
    ],
)
def test_a_name_that_is_gone_is_found(text: str, found: list[str]) -> None:
    assert missing(text) == found


@pytest.mark.parametrize("name", ["README.md", "book/index.md"])
def test_the_size_of_the_library_is_said_as_it_is(name: str) -> None:
    """As the guide says it, whose lines are counted in `tests/test_house.py`."""
    guide = (ROOT / "course_utils" / "README.md").read_text(encoding="utf-8")
    lines = [int(row) for row in re.findall(r"^\| \d+ \| \[`[^`]+`\]\([^)]+\) \| (\d+) \|", guide, re.MULTILINE)]
    text = (ROOT / name).read_text(encoding="utf-8")
    count = {8: "Eight", 9: "Nine", 10: "Ten", 11: "Eleven", 12: "Twelve"}[len(lines)]
    assert f"{count} of its files" in text and f"{sum(lines):,} lines" in text
