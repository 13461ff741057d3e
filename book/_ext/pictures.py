"""Draw a figure of the course while the book is built.

```{picture} quality.ways_to_a_classifier
:name: fig-ways

The caption.
```

calls `course_utils.plots.quality.ways_to_a_classifier()`, and takes the alternative text from it. The figure reads the
committed result files, so it cannot say anything else than they do.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import matplotlib as mpl
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.directives.patches import Figure  # docutils's own would give the name to the image, not to the figure
from sphinx.util.docutils import SphinxDirective


class PictureDirective(SphinxDirective):
    """Run `module.function` of `course_utils.plots`, which takes no arguments, and show what it draws as a figure."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"name": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Draw, save beside the built book, and hand over to docutils' figure."""
        from course_utils import plots  # a build that fails for another reason need not wait for torch
        from course_utils.evaluation import results  # a build that fails for another reason need not wait for torch

        name = self.arguments[0]
        module_name, _, function_name = name.rpartition(".")
        try:
            module = import_module(f"{plots.__name__}.{module_name}")
        except ImportError as error:
            raise self.error(f"course_utils.plots has no module {module_name!r}: {error}") from error
        function = getattr(module, function_name, None)
        if not callable(function):
            raise self.error(f"course_utils.plots.{module_name} has no function {function_name!r}")
        if not self.content:
            raise self.error(f"the picture {name} needs a caption that says what to see")
        folder = Path(self.env.srcdir) / "book" / "_build" / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"svg.hashsalt": name}):
            try:
                picture = function()
            except Exception as error:  # whatever it is, the author must learn which page and line asked for it
                raise self.error(f"the picture {name} could not be drawn: {error!r}") from error
            picture.figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        mpl.pyplot.close(picture.figure)
        for file in (*Path(plots.__file__).parent.glob("*.py"), *results.FOLDER.glob("*.json")):
            self.env.note_dependency(str(file))
        uri = "/" + (folder / f"{name}.svg").relative_to(self.env.srcdir).as_posix()
        options = {"alt": picture.alt, "width": "100%", **self.options}
        figure = Figure(
            "figure", [uri], options, self.content, self.lineno, self.content_offset, self.block_text, self.state,
            self.state_machine,
        )  # fmt: skip
        return figure.run()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("picture", PictureDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
