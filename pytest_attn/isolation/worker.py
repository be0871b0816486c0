"""The parent's side of one child process: start it, send it a request, take its answer or find out how it ended.

The child is a fresh interpreter, never a fork: a CUDA context does not survive one. Requests and answers are lines of
JSON over two pipes of their own, because an implementation may print; what it prints goes to a temporary file, whose
last lines explain an end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import IO, Any, Self

from attn_impls.adapt import UnknownImplementation
from attn_impls.implementation import Unavailable
from pytest_attn.correctness.running import NotDifferentiable
from pytest_attn.frames import ErrorAsText
from pytest_attn.out_of_memory import NoRoom
from pytest_attn.perf.telemetry import RUN_PID

# The child's first statement: sys.path must be the parent's before anything of ours can be imported.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pytest_attn.isolation.child import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
# Importing torch from a cold network disk takes a minute or more; beyond this something hangs.
_START_S = 300.0
# How often a silent child is looked at: its pipe stays open after its end when it left children of its own.
_POLL_S = 0.2
# How long a child whose pipe has closed may take to end: writing a core file, running exit handlers.
_GRACE_S = 5.0
_TAIL_LINES = 20
_TAIL_BYTES = 16384

# Exceptions that say something about the implementation and come through as themselves.
_PASSED: dict[str, type[Exception]] = {
    cls.__name__: cls for cls in (Unavailable, UnknownImplementation, NotDifferentiable)
}


class Ended(Exception):
    """The child ended before it answered.

    Attributes:
        reason: one sentence, also the message.
        stderr: the last lines that the child printed during this request, with the Python stack of a crash or a hang.
    """

    def __init__(self, reason: str, stderr: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.stderr = stderr

    def explain(self) -> str:
        """Return the reason and, indented, what the child printed last."""
        return "\n    ".join([self.reason, *self.stderr.splitlines()])


class Died(Ended):
    """The child ended by a signal or an exit, or its CUDA device became unusable."""


class TimedOut(Ended):
    """The child took longer than the timeout and was killed."""


class RemoteError(ErrorAsText):
    """The child raised something unexpected."""


class Worker:
    """One child process, started by the first request and started again by the first one after it ended.

    It has this process's interpreter, ``sys.path``, environment and working directory. It leads a process group of
    its own: Ctrl-C reaches only the parent, which then kills the group. It ends by itself when the parent is gone.

    Args:
        timeout: seconds that one request may take, or ``None``. The child's start does not count.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._answers = -1
        self._printed: IO[bytes] | None = None
        self._received = b""

    @property
    def pid(self) -> int | None:
        """The child's process id while there is a child."""
        return None if self._process is None else self._process.pid

    def request(self, name: str, /, **arguments: Any) -> Any:
        """Return the child's answer, plain JSON values, to the request ``name`` of :mod:`.answers`.

        Raises:
            Died: the child ended instead of answering.
            TimedOut: it was killed after ``timeout`` seconds.
            Unavailable, UnknownImplementation, NotDifferentiable, NoRoom: raised in the child.
            RemoteError: anything else that was raised in the child.
        """
        try:
            if self._process is not None and not _is_running(self._process):
                self.close()  # it ended between two requests
            if self._process is None:
                self._start()
            answer = self._exchange({"name": name, "arguments": arguments})
        except BaseException:
            # After an end there is no child to keep; after Ctrl-C it would still be busy with this request.
            self.close()
            raise
        if "lost" in answer:
            self.close()
            raise Died(f"the CUDA device is unusable: {answer['lost']}")
        if "raised" in answer:
            raised = answer["raised"]
            if raised["type"] == NoRoom.__name__:
                raise NoRoom(raised["message"], raised["frames"])
            if raised["type"] in _PASSED:
                raise _PASSED[raised["type"]](raised["message"])
            raise RemoteError(f"{raised['type']}: {raised['message']}", raised["frames"])
        return answer["result"]

    def close(self) -> None:
        """Kill the child with its whole process group, and release what it held here."""
        process, self._process = self._process, None
        if process is None:
            return
        # Before the child is waited for: until then its number cannot name another group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(self._requests)
        os.close(self._answers)
        if self._printed is not None:
            self._printed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self._received = b""
        printed = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        # Appending, so that the file can be emptied under the child.
        fcntl.fcntl(printed, fcntl.F_SETFL, fcntl.fcntl(printed, fcntl.F_GETFL) | os.O_APPEND)
        child_requests, self._requests = os.pipe()
        self._answers, child_answers = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), str(child_requests), str(child_answers)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=(child_requests, child_answers),
                start_new_session=True,
                env={**os.environ, RUN_PID: str(os.getpid())},
            )
        except BaseException:
            os.close(self._requests)
            os.close(self._answers)
            printed.close()
            raise
        finally:
            os.close(child_requests)
            os.close(child_answers)
        self._printed = printed
        try:
            self._receive(_START_S)
        except TimeoutError:
            raise TimedOut(f"the process was not ready after {_START_S:g} s", self._where_it_is()) from None
        except EOFError:
            raise self._death() from None

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._printed is not None
        self._printed.truncate(0)
        try:
            os.write(self._requests, json.dumps(request).encode() + b"\n")
            return self._receive(self.timeout)
        except TimeoutError:
            raise TimedOut(f"timed out after {self.timeout:g} s", self._where_it_is()) from None
        except (EOFError, BrokenPipeError):
            raise self._death() from None

    def _receive(self, timeout: float | None) -> dict[str, Any]:
        assert self._process is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while b"\n" not in self._received:
            left = _POLL_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if poll.poll(1000 * min(left, _POLL_S)):
                data = os.read(self._answers, 65536)
                if not data:
                    raise EOFError
                self._received += data
            elif not _is_running(self._process):
                raise EOFError
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> Died:
        """Return how the child ended, and collect it."""
        assert self._process is not None
        deadline = time.monotonic() + _GRACE_S
        while _is_running(self._process) and time.monotonic() < deadline:
            time.sleep(0.01)
        process, tail = self._process, self._tail()
        self.close()
        code = process.returncode
        if code >= 0:
            return Died(f"the process ended with exit code {code}", tail)
        try:
            name = f" ({signal.Signals(-code).name})"
        except ValueError:  # a real-time signal
            name = ""
        return Died(f"the process ended by signal {-code}{name}", tail)

    def _where_it_is(self) -> str:
        """Have the child print the stack that it hangs in, and return that."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGUSR1)
        time.sleep(_POLL_S)
        return self._tail()

    def _tail(self) -> str:
        assert self._printed is not None
        descriptor = self._printed.fileno()
        size = os.fstat(descriptor).st_size
        text = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")
        # faulthandler ends with a list of hundreds of modules on one line.
        lines = [line.rstrip() for line in text.splitlines() if line.strip() and "Extension modules:" not in line]
        return "\n".join(lines[-_TAIL_LINES:])


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether it has not ended, without collecting it if it has."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
