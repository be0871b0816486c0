"""Tell a lack of memory from all else that may be raised: it says nothing of an implementation's numbers."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from attn_impls.implementation import Unavailable
from pytest_attn.frames import ErrorAsText, forget_frames, led_to, own_frames

# What errors say that are of no type of their own.
_NO_ROOM = re.compile(
    r"DefaultCPUAllocator: "  # torch's allocator on a CPU
    r"|^std::bad_alloc$"
    r"|CUDA out of memory\. Tried to allocate "  # operators on the stable C++ interface, passing torch's text on
    r"|could not allocate \d+ bytes$"  # ours, which torch before 2.13 does not even tell the text
    r"|CUDA (?:driver )?error: out of memory|Triton Error \[CUDA\]: out of memory| failed: out of memory$"  # cudaMalloc
    r"|CU(?:BLAS|DNN)_STATUS_\w*ALLOC\w*_FAILED",  # handles and workspaces
    re.MULTILINE,
)

Asked = ParamSpec("Asked")
Found = TypeVar("Found")

# Where torch goes on to list every process of the device, and its own pools.
_DETAILS = re.compile(r" (?=Process \d|Including non-PyTorch memory|Of the allocated memory)")


class NoRoom(ErrorAsText):
    """Memory does not hold a problem: its inputs, what an implementation takes for it, or the oracle."""


def with_no_room_told(judge: Callable[Asked, Found]) -> Callable[Asked, Found]:
    """Let ``judge`` raise :class:`NoRoom` in place of what says that memory ran out, whose frames hold most of it."""

    @functools.wraps(judge)
    def judge_or_tell(*args: Asked.args, **keywords: Asked.kwargs) -> Found:
        try:
            return judge(*args, **keywords)
        except Unavailable:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = NoRoom(_in_a_line(error), own_frames(error))
            forget_frames(error)
        raise reason

    return judge_or_tell


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error``, or what it was raised from, says that memory ran out, of a CUDA device or of the CPU.

    To be asked in the process where it was raised: what a kernel did wrong shows in the next call, which may be an
    allocation, and then CUDA does not work any more.
    """
    return _says_no_room(error) and (not torch.cuda.is_initialized() or cuda_error() is None)


def cuda_error(device: torch.device | None = None) -> str | None:
    """Return the first line of the error that has left ``device``, or the current one, unusable, or ``None``.

    A lack of memory is none: a device that is full, perhaps of other processes' tensors, may not even have room for a
    context.
    """
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return None if _says_no_room(error) else str(error).partition("\n")[0]
    return None


def _in_a_line(error: BaseException) -> str:
    lines = str(error).splitlines() or ["without a message"]
    said = next(filter(_NO_ROOM.search, lines), lines[0])
    return f"{type(error).__name__}: {_DETAILS.split(said)[0]}"


def _says_no_room(error: BaseException) -> bool:
    # Not what it was raised in the midst of: that may have been dealt with.
    return any(
        isinstance(each, torch.OutOfMemoryError | MemoryError) or _NO_ROOM.search(str(each)) is not None
        for each in led_to(error, handled=False)
    )
