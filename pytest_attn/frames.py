"""Whose frames a traceback is made of: what a failure shows is the implementation's, not how it was called."""

from __future__ import annotations

import inspect
import os
import traceback
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
