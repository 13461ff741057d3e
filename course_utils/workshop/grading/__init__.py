"""Grade a class: `python -m course_utils grade SUBMISSIONS --out REPORT`.

From a folder of notebooks to a grade book, in steps that each have a module:

* `labs`: what a lab asks, from its source,
* `collect`: the notebooks of a folder, and what is wrong with them,
* `server`, `pool`: processes that imported PyTorch once and fork a fresh pair for every exercise:
* `student`: the half that runs the student's code, behind `sandbox`,
* `judge`: the half that runs the check; it sees the student's function only through `values`, as data,
* `records`, `reports`, `pages`: the points, as JSON, CSV and HTML.
"""
