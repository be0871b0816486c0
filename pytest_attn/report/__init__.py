"""The report: from the records of a run to a page, figures, and tables that other tools read.

Importing this package imports neither matplotlib nor pandas nor Jinja: they belong to the extra
``pytest-attn[report]`` and are needed only by :func:`write_report`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from pytest_attn.perf.record import BadRun, Run
from pytest_attn.report.contracts import one_contract
from pytest_attn.report.folder import write_files

__all__ = ["MissingExtra", "write_report"]


class MissingExtra(ImportError):
    """A package that the report needs is not installed; the message says how to get it."""


def write_report(runs: Sequence[Run], directory: str | Path, left_out: Sequence[str] = ()) -> Path:
    """Write ``index.html``, ``figures/*.svg`` and ``*.png``, ``results.csv`` and ``results.md`` into ``directory``.

    The same runs give the same bytes. Records of another contract than most have are left out, which the page says. The
    directory is made when it is missing. Files of a former report are replaced, and its figures that this one does not
    have are removed unless someone changed them; nothing else is touched.

    Args:
        runs: one run, or several whose records then carry the machine or the file as a label.
        directory: where to write.
        left_out: sentences on what of the runs was not read, for the top of the page.

    Returns:
        The path of ``index.html``.

    Raises:
        BadRun: ``runs`` is empty, or two of them share no contract, so that they must not be compared.
        MissingExtra: matplotlib, pandas or Jinja is not installed.
        OSError: the directory cannot be written, or holds files of these names that no report wrote; the message is a
            sentence.
    """
    if not runs:
        raise BadRun("there is no run to report on")
    for package, module in (("pandas", "pandas"), ("matplotlib", "matplotlib"), ("Jinja", "jinja2")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            message = f"the report needs {package}, which does not import ({error}): pip install 'pytest-attn[report]'"
            raise MissingExtra(message, name=module) from None
    from pytest_attn.report.build import build

    kept, others = one_contract(runs)
    target = Path(directory)
    write_files(target, build(kept, [*left_out, *others]))
    return target / "index.html"
