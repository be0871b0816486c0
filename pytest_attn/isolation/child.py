"""The child's side: read a request, answer it, until the parent closes the pipe."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
import traceback
from queue import SimpleQueue
from typing import Any


def main(requests: int, answers: int) -> None:
    """Serve the requests that arrive on one file descriptor, each a line of JSON, with lines on the other."""
    # A crash prints the Python stack; so does SIGUSR1, which the parent sends before it kills a child that hangs.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    for descriptor in (requests, answers):
        os.set_inheritable(descriptor, False)
    lines: SimpleQueue[str] = SimpleQueue()
    # A thread reads, so that the end of the parent is noticed in the middle of a request as well.
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()
    from pytest_attn.isolation.answers import Answers

    answering = Answers()
    with open(answers, "w", encoding="utf-8") as out:
        _send(out, {"ready": True})
        while True:
            request = json.loads(lines.get())
            answer = _answer(answering, request)
            _send(out, answer)
            if "lost" in answer:
                os._exit(1)  # exit handlers would use the device


def _read(requests: int, lines: SimpleQueue[str]) -> None:
    with open(requests, encoding="utf-8") as source:
        for line in source:
            lines.put(line)
    os.killpg(0, signal.SIGKILL)


def _send(out: Any, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def _answer(answering: Any, request: dict[str, Any]) -> dict[str, Any]:
    from pytest_attn.frames import ErrorAsText

    answer: dict[str, Any]
    try:
        answer = {"result": getattr(answering, request["name"])(**request["arguments"])}
    except Exception as error:
        in_text = error.frames if isinstance(error, ErrorAsText) else ""
        frames = in_text or "".join(traceback.format_tb(error.__traceback__))
        answer = {"raised": {"type": type(error).__name__, "message": str(error), "frames": frames}}
    if "raised" in answer:
        answering.give_back()  # only here: before, the error's frames held what the request took
    lost = answering.lost_device()
    return answer if lost is None else {"lost": lost}
