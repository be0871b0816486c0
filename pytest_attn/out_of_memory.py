"""Tell a lack of memory from all else that an implementation may raise."""

from __future__ import annotations

import re

import torch

# What errors say that are of no type of their own: torch's allocator on a CPU; operators built on the stable C++
# interface, which pass on the text of torch's error, or, of ours, say it themselves, as torch before 2.13 does not even
# tell them the text; a kernel's own cudaMalloc, checked by torch or by Triton.
_NO_ROOM = re.compile(
    r"DefaultCPUAllocator: "
    r"|CUDA out of memory\. Tried to allocate "
    r"|^could not allocate \d+ bytes"
    r"|^(?:CUDA error|Triton Error \[CUDA\]): out of memory"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` says that memory ran out, of a CUDA device or of the CPU's allocator.

    To be asked in the process where it was raised: what a kernel did wrong shows in the next call, which may be an
    allocation, and then CUDA does not work any more.
    """
    of_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return (of_type or _NO_ROOM.search(str(error)) is not None) and _device_answers()


def _device_answers() -> bool:
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
