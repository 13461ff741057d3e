"""Answers that break, deceive or attack. Each stands in the cell of `lora.forward`; none may earn its points.

name → (code of the cell, words of the reason). `RIGHT` is the body of a right answer, so that an attack cannot fail
for a wrong formula alone where it is to fail for what it does.
"""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

from course_utils.workshop.authoring.notebooks import ROOT

HEAD = "def lora_forward(x, W, b, A, B, alpha):\n    "
RIGHT = "return x @ W.T + b + alpha / A.shape[0] * (x @ A.T @ B.T)\n"
WRONG = "return x @ W.T + b\n"
_WRONG_TOLD = "not right yet"
_GONE = "ended the Python process"
_LATE = "ran longer"


def at_call(code: str, result: str = WRONG) -> str:
    """A cell whose function does this when the check calls it."""
    return HEAD + code.replace("\n", "\n    ") + "\n    " + result


def before(code: str, result: str = WRONG) -> str:
    """A cell that does this, and then defines its function."""
    return f"{code}\n{HEAD}{result}"


BROKEN: dict[str, tuple[str, str]] = {
    "syntax error": (HEAD + "return x @ (W.T\n", "SyntaxError"),
    "indentation": ("def lora_forward(x, W, b, A, B, alpha):\nreturn x\n", "IndentationError"),
    "null byte": (HEAD + "return x\0\n", "cannot run"),
    "nested too deep": (HEAD + "return " + "(" * 5000 + "x" + ")" * 5000 + "\n", "cannot run"),
    "error in the cell": ("1 / 0\n" + HEAD + RIGHT, "ZeroDivisionError"),
    "deleted name": (HEAD + "return from_a_deleted_cell(x, W, b, A, B, alpha)\n", "NameError"),
    "no answer": ("forward = 3\n", "does not define"),
    "a value": ("lora_forward = 3\n", "Expected a function"),
    "nothing": (HEAD + "pass\n", "return"),
    "not implemented": (HEAD + "raise NotImplementedError\n", "not attempted"),
    "waits for input": (at_call("input('what is alpha? ')", RIGHT), "EOFError"),
    "exit in the cell": ("import sys\nsys.exit(0)\n" + HEAD + RIGHT, "SystemExit"),
    "exit at the call": (at_call("import sys\nsys.exit(0)"), "SystemExit"),
    "interrupt": (at_call("raise KeyboardInterrupt"), "KeyboardInterrupt"),
    "recursion": (at_call("lora_forward(x, W, b, A, B, alpha)", RIGHT), "RecursionError"),
    "error without text": (
        before("class E(Exception):\n    def __str__(self): raise self", "raise E\n"),
        "cannot be shown",
    ),
    "endless loop in the cell": ("while True: pass\n" + HEAD + RIGHT, "did not come to an end"),
    "endless loop at the call": (at_call("while True: pass", RIGHT), _LATE),
    "sleeps": (at_call("import time\ntime.sleep(1000)", RIGHT), _LATE),
    "endless output": (at_call("while True: print('x' * 1000)", RIGHT), _LATE),
    "endless result": (at_call("import itertools", "return itertools.count()\n"), ""),
    "huge text": (before("", "return 'x' * (300 << 20)\n"), ""),
    "result that holds itself": (before("a = []\na.append(a)", "return a\n"), "RecursionError"),
    "memory": (at_call("a = []\nwhile True: a.append(bytearray(10 ** 8))", RIGHT), "MemoryError"),
    "memory of torch": (at_call("import torch\ntorch.ones(10 ** 11)", RIGHT), "stopped with"),
    "threads": (
        at_call("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()", RIGHT),
        "",
    ),
    "crash": (at_call("import ctypes\nctypes.string_at(0)", RIGHT), _GONE),
    "abort": (at_call("import os\nos.abort()", RIGHT), _GONE),
    "killed kernel": (at_call("import os\nos._exit(0)", RIGHT), _GONE),
    "killed kernel in the cell": ("import os\nos._exit(0)\n" + HEAD + RIGHT, "ended the Python process"),
    "text for a script": (at_call("raise ValueError('<script>alert(1)</script>')"), "<script>"),
    "formula for a sheet": (at_call("raise type('=1+1', (Exception,), {})('=2+2')"), "=1+1"),
}

_PATCH = "import course_utils.exercises as e, course_utils.exercises.checking as r\n"
_STEAL = """
import gc, sys
for thing in gc.get_objects():
    if isinstance(thing, dict) and 'right' in thing and 'mistakes' in thing:
        stolen = thing['right']
frame = sys._getframe()
while frame:
    if 'low' in frame.f_locals:
        return frame.f_locals['h'] + 2.5 * frame.f_locals['low']
    frame = frame.f_back
"""
_ALWAYS = """
import torch
class Always(torch.Tensor):
    def __eq__(self, other): return True
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None): return True
"""

DECEITFUL: dict[str, tuple[str, str]] = {
    "patched check": (before(_PATCH + "e.check = e.run_check = lambda *a: print('passed')"), _WRONG_TOLD),
    "patched run_check": (
        before(_PATCH + "r.run_check = lambda n, a: r.CheckResult(r._EXERCISES[n], 'passed', '')"),
        _WRONG_TOLD,
    ),
    "patched compare": (before(_PATCH + "r.compare = r.equal = r.tensor = lambda *a: True"), _WRONG_TOLD),
    "patched exercise": (
        before(_PATCH + "for k, v in r._EXERCISES.items(): object.__setattr__(v, 'check', lambda a: None)"),
        _WRONG_TOLD,
    ),
    "more points": (
        before(_PATCH + "for v in r._EXERCISES.values(): object.__setattr__(v, 'points', 99)"),
        _WRONG_TOLD,
    ),
    "patched torch": (before("import torch\ntorch.allclose = torch.equal = lambda *a, **k: True"), _WRONG_TOLD),
    "patched torch for one call": (
        at_call("import torch\nold = torch.allclose\ntorch.allclose = lambda *a, **k: True"),
        _WRONG_TOLD,
    ),
    "patched assert": (
        before("import builtins\nbuiltins.AssertionError = builtins.Exception = type('E', (BaseException,), {})"),
        _WRONG_TOLD,
    ),
    "patched builtins": (
        before("import builtins\nbuiltins.isinstance = builtins.all = lambda *a: True"),
        "",
    ),
    "replaced course_utils": (
        before(
            "import sys, types\nfor n in list(sys.modules):\n    if 'course' in n: sys.modules[n] = types.ModuleType(n)"
        ),
        "",
    ),
    "import hook": (
        before("import sys\nclass H:\n    def find_spec(self, *a): raise ImportError\nsys.meta_path[:] = [H()]"),
        _WRONG_TOLD,
    ),
    "input transformer": (
        before("get_ipython().input_transformers_post.append(lambda lines: ['check = print'])"),
        "NameError",
    ),
    "environment switched": (
        before("import os\nos.environ.update(PYTHONPATH='/tmp', COURSE_CACHE='/tmp', PYTHONOPTIMIZE='2')"),
        _WRONG_TOLD,
    ),
    "an object that equals everything": (
        before(
            "class Equal:\n    def __eq__(self, o): return True\n    def __float__(self): return 1.0",
            "return Equal()\n",
        ),
        "as a tensor",
    ),
    "a tensor that equals everything": (before(_ALWAYS, "return torch.zeros(3, 6).as_subclass(Always)\n"), ""),
    "raises Wrong": (at_call(_PATCH + "raise r.Wrong('passed, 3 points')"), "stopped with Wrong"),
    "looks into the check": (at_call(_STEAL), _WRONG_TOLD),
    "writes its own verdict": (
        at_call(
            "import os, json, struct\nd = json.dumps({'status': 'passed', 'message': 'passed', 'word': ''}).encode()\n"
            "for fd in range(64):\n    try: os.write(fd, struct.pack('Q', len(d)) + d)\n    except OSError: pass"
        ),
        "",
    ),
    "writes a verdict and leaves": (
        before(
            "import os, json, struct\nd = json.dumps({'kind': 'function', 'value': None, 'error': None, 'status': "
            "'passed', 'result': None, 'changed': []}).encode()\n"
            "for i in range(9): os.write(3, struct.pack('Q', len(d)) + d)\nos._exit(0)"
        ),
        "",
    ),
    "writes what is no message": (at_call("import os\nos.write(3, b'\\xff' * 100)"), "disturbed"),
    "zeroes what it is given": (at_call("[t.zero_() for t in (x, W, b, A, B)]", "return x @ W.T + b\n"), "in place"),
    "knows the numbers of the check": (
        before(
            "from course_utils.exercises.checking import random_tensors\n"
            "T = random_tensors((3, 7), (7, 7), (7,), (2, 7), (7, 2))",
            "s = 2.5 if x.shape == (3, 7) and bool((x == T[0]).all()) else 4 / 3\n"
            "    return x @ W.T + b + s * (x @ A.T @ B.T)\n",
        ),
        "with other numbers",
    ),
}

#: Where attacks try to write, and a folder that they try to destroy; the test makes the one and misses the other. Each
#: process has its own, so that two runs on one computer do not meet.
_OWN = Path(tempfile.gettempdir()) / f"course-grading-test-{secrets.token_hex(8)}"
ESCAPED, VICTIM = _OWN.with_suffix(".escaped"), _OWN.with_suffix(".victim")
_OUT, _VICTIM = str(ESCAPED), str(VICTIM)

#: What each tries must not happen; the code returns the solution's result only where its attempt succeeds.
ATTACKS: dict[str, str] = {
    "reads the solution": f"open({str(ROOT / 'solutions' / '09_lora.py')!r}).read()",
    "reads the solved notebook": f"open({str(ROOT / 'solutions' / '09_lora.ipynb')!r}).read()",
    "reads the tests' answers": f"open({str(ROOT / 'tests' / 'answers' / 'lora.py')!r}).read()",
    "lists the repository": f"__import__('os').listdir({str(ROOT)!r})",
    "imports the solution": f"__import__('sys').path.insert(0, {str(ROOT / 'tests')!r}); import answers.lora",
    "reads the passwords": "open('/etc/passwd').read()",
    "reads its judge's memory": "open(f'/proc/{__import__(\"os\").getppid()}/mem', 'rb').read(1)",
    "reads its judge's files": "__import__('os').listdir(f'/proc/{__import__(\"os\").getppid()}/fd')",
    "writes outside": f"open({_OUT!r}, 'w').write('x')",
    "writes into the course": f"open({str(ROOT / 'course_utils' / 'escape.py')!r}, 'w').write('x')",
    "changes a mode": f"__import__('os').chmod({_VICTIM!r}, 0)",
    "moves a folder": f"__import__('os').rename({_VICTIM!r}, {_OUT!r})",
    "removes a folder": f"__import__('shutil').rmtree({_VICTIM!r})",
    "makes a link": f"__import__('os').link({str(ROOT / 'solutions' / '09_lora.py')!r}, 'mine.py')",
    "huge file": "h = open('huge', 'wb'); [h.write(bytes(10 ** 6)) for _ in range(100)]",
    "network": "__import__('socket').socket()",
    "network by a library": "__import__('asyncio').new_event_loop()",
    "forks": "__import__('os').fork()",
    "starts a program": "__import__('subprocess').run(['/bin/true'])",
    "starts processes": "__import__('multiprocessing').Process(target=print).start()",
    "spawns": "__import__('os').posix_spawn('/bin/true', ['true'], {})",
    "kills its judge": "__import__('os').kill(__import__('os').getppid(), 9)",
    "signals everybody": "__import__('os').kill(-1, 0)",
    "raises its limits": "__import__('resource').prlimit(0, __import__('resource').RLIMIT_CPU, (9999, 9999))",
    "limits its judge": "__import__('resource').prlimit(__import__('os').getppid(), 0, (1, 1))",
    "becomes somebody else": "__import__('os').setuid(12345)",
    "changes the root": "__import__('os').chroot('/')",
}


def attack(statement: str) -> str:
    """A cell that gives the right answer where its attack succeeds, and the error where it does not."""
    lines = "\n        ".join(statement.split("; "))
    return f"{HEAD}try:\n        {lines}\n    except Exception as e: raise ValueError(f'refused: {{e!r}}')\n    {RIGHT}"


#: The same for a check that runs beside the answer: `why.freeze` of lab 1, where a right answer freezes the body.
BESIDE_HEAD = "def freeze_body(model):\n    "
_FREEZE = "model.requires_grad_(False)\n    "
BESIDE: dict[str, str] = {
    "patches torch": "import torch\ntorch.equal = lambda *a: True\n" + BESIDE_HEAD + "pass\n",
    "patches the check": _PATCH + "r.judge = None\n" + BESIDE_HEAD + "pass\n",
    "patches the class": BESIDE_HEAD + "type(model).state_dict = lambda self: {}\n",
    "patches the class by another way": BESIDE_HEAD + "model.__class__.state_dict = lambda self: {}\n",
    "looks at frames": "import sys\n" + BESIDE_HEAD + "sys._getframe(1).f_locals\n",
    "evaluates a text": BESIDE_HEAD + "eval('1')\n",
    "writes a verdict": "import os\n" + BESIDE_HEAD + "os.write(3, b'passed')\n",
    "sets an attribute": "import torch\nsetattr(torch, 'equal', lambda *a: True)\n" + BESIDE_HEAD + "pass\n",
}
#: These slip through the screen, and are found afterwards.
BESIDE_FOUND: dict[str, str] = {
    "a patch that no screen sees": (
        "import torch\nt = torch\n" + BESIDE_HEAD + "t.equal = lambda *a: True\n    model.requires_grad_(False)\n"
        "    model.classifier.requires_grad_(True)\n"
    ),
}
