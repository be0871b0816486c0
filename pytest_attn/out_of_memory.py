"""Tell a lack of memory from all else that an implementation may raise."""

from __future__ import annotations

import re

import torch

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


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` says that memory ran out, of a CUDA device or of the CPU's allocator.

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


def _says_no_room(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_ROOM.search(str(error)) is not None
