"""Frames of errors: those that a failure shows, the implementation's and not how it was called; and what they hold."""

from __future__ import annotations

import contextlib
import inspect
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest_attn
from attn_impls import adapt
from attn_impls.implementation import Implementation

_OURS = f"{Path(pytest_attn.__file__).parent}{os.sep}"  # not a package whose name begins with ours
_CALLERS = (inspect.getfile(Implementation), inspect.getfile(adapt))


def own_frames(error: BaseException) -> str:
    """Return the traceback of ``error`` as text, from the implementation's first frame on; all of it without one."""
    frames = traceback.extract_tb(error.__traceback__)
    files = [frame.filename for frame in frames]
    first = next((at for at, file in enumerate(files) if not file.startswith(_OURS) and file not in _CALLERS), 0)
    return "".join(traceback.format_list(frames[first:]))


def empty_frames(error: BaseException) -> None:
    """Let go of the locals in all frames of ``error`` and of what led to it, which are tensors; its lines stay.

    An error may outlive the call by far: pytest keeps it for its report, Python as the last one.
    """
    for each in _with_causes(error):
        if each.__traceback__ is None:
            continue
        traceback.clear_frames(each.__traceback__)
        # A frame keeps its caller's alive, too, though that has returned since and is not part of the traceback.
        caller = each.__traceback__.tb_frame.f_back
        with contextlib.suppress(RuntimeError):  # the first that is still running, as are all its callers
            while caller is not None:
                caller.clear()
                caller = caller.f_back


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of ``error`` and of what led to it, with the frames that are still running."""
    for each in _with_causes(error):
        each.__traceback__ = None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        each = rest.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            within = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
            rest += [each.__cause__, each.__context__, *within]
