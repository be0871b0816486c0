"""Frames of errors: those that a failure shows, the implementation's and not how it was called; and what they hold."""

from __future__ import annotations

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


def raised_sentence(error: BaseException) -> str:
    """Return what a verdict says of what an implementation raised."""
    return f"raised {type(error).__name__}: {str(error).strip() or 'without a message'}"


class ErrorAsText(Exception):
    """Something that was raised, without its traceback.

    Attributes:
        frames: the implementation's frames, as :func:`own_frames` gives them.
    """

    def __init__(self, message: str, frames: str = "") -> None:
        super().__init__(message)
        self.frames = frames


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of ``error`` and of what led to it: the locals of their frames are tensors.

    Not only empty them: a frame keeps its function, with all that it closes over, and its caller, even one that has
    returned. And one that waits is somebody's generator, which would be closed.
    """
    for each in led_to(error, handled=True):
        each.__traceback__ = None


def led_to(error: BaseException, *, handled: bool) -> Iterator[BaseException]:
    """Yield ``error``, the members of groups, what it was raised from and, if ``handled``, in the midst of, once."""
    rest: list[BaseException | None] = [error]
    seen: set[int] = set()  # who raises an error from itself makes a circle
    while rest:
        each = rest.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        within = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        rest += [each.__cause__, each.__context__ if handled else None, *within]
