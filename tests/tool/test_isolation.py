"""Implementations in processes of their own: a crash, a hang or a lost device ends one process and one test."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attn_impls import Direction, Implementation, Problem, Unavailable, UnknownImplementation, discover
from attn_impls.adapt import from_reference
from pytest_attn import settled
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.judge import judge
from pytest_attn.correctness.large import judge_last
from pytest_attn.correctness.running import NotDifferentiable
from pytest_attn.isolation import Died, RemoteError, TimedOut, Worker, Workers, child
from pytest_attn.isolation.description import describe, stand_in, unknown_stand_in
from pytest_attn.out_of_memory import NoRoom
from pytest_attn.perf.contract import contract_for
from tests.tool.nested import ROOT, lay_out_files, repeat_commands, run, said

pytest_plugins = ["pytester"]

CPU = torch.device("cpu")
DEEDS = ("right", "segfault", "exit", "hang", "kill", "lose", "print", "raise", "unavailable", "detach")

# What it does is told by the length of the keys: so one process is asked for all of it.
UNRULY = (
    f"DEEDS = {DEEDS}"
    + """
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path
import attn_impls
import pytest_attn.perf.device

def attention(q, k, v, causal=False):
    deed = DEEDS[k.shape[2] - 2] if 2 <= k.shape[2] < 2 + len(DEEDS) else "right"
    if deed == "segfault":
        ctypes.string_at(0)
    if deed == "exit":
        print("giving up", flush=True)
        os._exit(3)
    if deed == "hang":
        helper = subprocess.Popen(["sleep", "60"])
        Path(os.environ["UNRULY_HELPER"]).write_text(str(helper.pid))
        time.sleep(60)
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "lose":
        pytest_attn.perf.device.lost_device = lambda device: "CUDA error: an illegal memory access was encountered"
        raise RuntimeError("CUDA error")
    if deed == "print":
        print('{"result": "not an answer"}', flush=True)
        print("to stderr", file=sys.stderr)
    if deed == "raise":
        raise ValueError("kernel exploded")
    if deed == "unavailable":
        raise attn_impls.Unavailable("no compiler")
    scores = (q.float() @ k.float().mT) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    out = (scores.softmax(-1) @ v.float()).to(q.dtype)
    return out.detach() if deed == "detach" else out

def sleeper(q, k, v, causal=False):
    time.sleep(60)

def crasher(q, k, v, causal=False):
    ctypes.string_at(0)

compiled = attn_impls.Implementation("compiled", attention, resources=lambda: {"kernel": {"registers": 40}})
unreadable = attn_impls.Implementation("unreadable", attention, resources=lambda: ctypes.string_at(0))

choosy = attn_impls.Implementation(
    "choosy",
    lambda q, k, v, problem: attention(q, k, v),
    attn_impls.Capabilities(also=lambda problem, device_type: "not on three" if problem.q_len == 3 else None),
)

def first(q, k, v):
    Path(os.environ["UNRULY_HELPER"]).write_text(str(os.getpid()))
    return attention(q, k, v)

seconds = []

def second(q, k, v):
    seconds.append(None)
    if len(seconds) > 1 or Path("/proc", Path(os.environ["UNRULY_HELPER"]).read_text()).exists():
        raise MemoryError("no room beside it")
    return attention(q, k, v)
"""
)
# As the suite's, with cases that cost nothing to draw and to shrink.
SEEDS = """
import pytest
from hypothesis import given, strategies
from attn_impls import Direction, Problem
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.profiles import suite_settings

@pytest.mark.correctness(direction="fwd")
@suite_settings()
@given(seed=strategies.integers(0, 999))
def test_forward(attn_impl, attn_check, seed):
    attn_check(Case(Problem(1, 2, 2, 20, 20, 8, "fp32"), seed=seed), Direction.FWD)
"""
IMPL = unknown_stand_in("unruly:attention")


def case(deed: str) -> Case:
    length = DEEDS.index(deed) + 2
    return Case(Problem(1, 2, 2, length, length, 8, "fp32"))


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    folder = tmp_path_factory.mktemp("unruly")
    (folder / "unruly.py").write_text(UNRULY)
    with pytest.MonkeyPatch.context() as patch, Workers() as workers:
        patch.syspath_prepend(str(folder))
        patch.setenv("UNRULY_HELPER", str(folder / "helper"))
        yield workers


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def ended_within(seconds: float, pid: int) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
def test_a_verdict_is_the_one_of_this_process(workers: Workers, direction: Direction) -> None:
    here = judge(from_reference("unruly:attention"), case("print"), direction, CPU)
    assert here.ok
    # Though it printed what looks like an answer.
    assert workers.judge(IMPL, case("print"), direction, CPU) == here
    here = judge_last(from_reference("unruly:attention"), case("print"), direction, CPU)
    assert here.ok
    assert workers.judge_last(IMPL, case("print"), direction, CPU) == here


def test_an_implementation_of_another_name_is_found_by_its_reference(workers: Workers) -> None:
    choosy = workers.discover(CPU).resolve("unruly:choosy")
    assert choosy.name == "unruly:choosy"
    two, three = Problem(1, 2, 2, 2, 2, 8, "fp32"), Problem(1, 2, 2, 3, 3, 8, "fp32")
    assert choosy.capabilities.why_not(two, Direction.FWD, "cpu") is None
    assert choosy.capabilities.why_not(three, Direction.FWD, "cpu") == "not on three"
    assert workers.judge(choosy, case("right"), Direction.FWD, CPU).ok


def test_a_large_problem_that_idle_children_leave_no_room_for_is_tried_without_them(workers: Workers) -> None:
    first, second = unknown_stand_in("unruly:first"), unknown_stand_in("unruly:second")
    assert workers.judge_last(first, case("right"), Direction.FWD, CPU).ok
    helper = Path(os.environ["UNRULY_HELPER"])
    assert is_alive(int(helper.read_text()))
    with pytest.raises(NoRoom):
        workers.judge(second, case("right"), Direction.FWD, CPU)
    assert workers.judge_last(second, case("right"), Direction.FWD, CPU).ok
    assert not is_alive(int(helper.read_text()))
    assert workers._scout.pid is None
    helper.write_text(str(os.getpid()))  # which stays
    with pytest.raises(NoRoom, match=r"^MemoryError: no room beside it$") as raised:
        workers.judge_last(second, case("right"), Direction.FWD, CPU)
    assert raised.value.frames.count("File ") == 1
    assert "in second" in raised.value.frames


def test_what_an_implementation_raises_comes_through(workers: Workers) -> None:
    verdict = workers.judge(IMPL, case("raise"), Direction.FWD, CPU)
    assert verdict.broken == "raised ValueError: kernel exploded"
    assert isinstance(verdict.raised, RemoteError)
    assert verdict.raised.frames.count("File ") == 1
    assert "unruly.py" in verdict.raised.frames
    with pytest.raises(Unavailable, match=r"^no compiler$"):
        workers.judge(IMPL, case("unavailable"), Direction.FWD, CPU)
    with pytest.raises(NotDifferentiable, match="without a gradient function"):
        workers.judge(IMPL, case("detach"), Direction.BWD, CPU)
    with pytest.raises(UnknownImplementation, match="cannot import 'unruly:nothing'"):
        workers.judge(unknown_stand_in("unruly:nothing"), case("right"), Direction.FWD, CPU)


@pytest.mark.parametrize(
    ("deed", "sentence", "last"),
    [
        ("segfault", "the process ended by signal 11 (SIGSEGV)", "in attention"),
        ("exit", "the process ended with exit code 3", "giving up"),
        ("lose", "the CUDA device is unusable: CUDA error: an illegal memory access was encountered", ""),
    ],
)
def test_a_death_is_a_verdict_and_the_next_request_gets_a_new_process(
    workers: Workers, deed: str, sentence: str, last: str
) -> None:
    verdict = workers.judge(IMPL, case(deed), Direction.FWD, CPU)
    assert isinstance(verdict.raised, Died)
    assert verdict.broken is not None
    assert verdict.broken.partition("\n")[0] == sentence
    assert last in verdict.broken
    assert workers.judge(IMPL, case("right"), Direction.FWD, CPU).ok
    last_head = workers.judge_last(IMPL, case(deed), Direction.FWD, CPU)
    assert (last_head.broken or "").partition("\n")[0] == sentence


def test_a_process_killed_in_its_second_request_leaves_nothing_behind(workers: Workers) -> None:
    descriptors = open_descriptors()
    with Worker() as worker:

        def ask(deed: str) -> object:
            asked = case(deed).to_dict()
            return worker.request("judge", impl=IMPL.name, case=asked, direction="fwd", device="cpu")["broken"]

        assert ask("right") is None
        first = worker.pid
        with pytest.raises(Died, match=r"^the process ended by signal 9 \(SIGKILL\)$"):
            ask("kill")
        assert worker.pid is None
        assert ask("right") is None
        second = worker.pid
    assert first is not None
    assert second is not None
    assert first != second
    assert not Path(f"/proc/{first}").exists()  # not even a zombie
    assert not Path(f"/proc/{second}").exists()
    assert open_descriptors() == descriptors


def test_a_hang_ends_with_the_timeout_and_takes_its_helpers_along(workers: Workers) -> None:
    worker = Worker(timeout=1.5)
    asked = case("hang").to_dict()
    with worker, pytest.raises(TimedOut, match=r"^timed out after 1\.5 s$") as timed_out:
        worker.request("judge", impl=IMPL.name, case=asked, direction="fwd", device="cpu")
    assert "in attention" in timed_out.value.stderr  # where it hung
    assert ended_within(60, int(Path(os.environ["UNRULY_HELPER"]).read_text()))


def test_an_interrupt_ends_the_process(workers: Workers) -> None:
    with Worker() as worker:
        worker.request("also", impl="naive", problem=case("right").problem.to_dict(), device_type="cpu")
        pid = worker.pid
        assert pid is not None

        def interrupted() -> None:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            worker.request("judge", impl=IMPL.name, case=case("hang").to_dict(), direction="fwd", device="cpu")

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert not Path(f"/proc/{pid}").exists()


def test_a_process_does_not_outlive_its_parent(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    hang = {"impl": IMPL.name, "case": case("hang").to_dict(), "direction": "fwd", "device": "cpu"}
    script = (
        "from pytest_attn.isolation import Worker\nworker = Worker()\n"
        f"worker.request('describe', impl='naive', device='cpu')\nprint(worker.pid, flush=True)\n"
        f"worker.request('judge', **{hang!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert is_alive(pid)
        parent.kill()
    assert ended_within(60, pid)


def test_a_measurement_is_a_record_and_so_is_a_death(workers: Workers) -> None:
    contract = contract_for("wall", "cpu")
    problem = case("right").problem
    measured = workers.measure(IMPL, problem, Direction.FWD, CPU, contract)
    assert measured.record.key == ("unruly:attention", problem.id, "fwd")
    assert measured.record.status in ("ok", "noisy"), measured.record.reason
    assert len(measured.durations) == (measured.record.time_s.n if measured.record.time_s else 0)
    died = workers.measure(IMPL, case("segfault").problem, Direction.FWD, CPU, contract)
    assert died.record.status == "error"
    assert died.record.reason == "the process ended by signal 11 (SIGSEGV)"
    assert died.record.contract == contract.id
    assert died.durations == ()


def test_memory_is_given_back_after_an_error_whose_frames_are_gone() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    given_back = []

    class Answering:
        def fail(self) -> None:
            large = torch.zeros(3)
            held.append(weakref.ref(large))
            raise ValueError("exploded")

        def give_back(self) -> None:
            given_back.append([ref() for ref in held])

        def lost_device(self) -> None: ...

    answer = child._answer(Answering(), {"name": "fail", "arguments": {}})
    assert answer["raised"]["message"] == "exploded"
    assert given_back == [[None]]


def test_what_compiled_kernels_take_is_asked_of_a_process(workers: Workers) -> None:
    assert workers.resources(IMPL, CPU) is None
    told = workers.resources(unknown_stand_in("unruly:compiled"), CPU)
    assert told == {"missing": None, "kernels": {"kernel": {"registers": 40}}}
    died = workers.resources(unknown_stand_in("unruly:unreadable"), CPU)
    assert died == {"missing": "the process ended by signal 11 (SIGSEGV)", "kernels": None}


@pytest.mark.parametrize("impl", discover().values(), ids=lambda impl: impl.name)
def test_a_stand_in_claims_what_it_stands_for_and_cannot_be_called(impl: Implementation) -> None:
    asked: list[object] = []

    def also(*arguments: object) -> None:
        asked.append(arguments)

    data = json.loads(json.dumps(describe(impl, "cpu")))
    here = stand_in(data, also)
    assert dataclasses.replace(here.capabilities, also=None) == dataclasses.replace(impl.capabilities, also=None)
    assert here.why_unavailable("cpu") == impl.why_unavailable("cpu")
    for attribute in ("name", "summary", "how_to_get", "declared"):
        assert getattr(here, attribute) == getattr(impl, attribute)
    if impl.capabilities.also is not None:
        assert here.capabilities.also is not None
        here.capabilities.also(case("right").problem, "cpu")
        assert asked == [(impl.name, case("right").problem, "cpu")]
    with pytest.raises(RuntimeError, match=f"{impl.name} runs in a process of its own"):
        here(None, None, None, None)  # type: ignore[arg-type]


def test_a_test_keeps_its_first_hang_and_a_late_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0 + settled.SHRINK_S - 1, 100.0 + settled.SHRINK_S])
    monkeypatch.setattr(settled.time, "monotonic", lambda: next(clock))
    kept = settled.Settled()
    kept.failed("wrong", None)
    for report in ("crash", "smaller crash"):
        kept.failed(report, Died("the process ended"))
        assert kept.report is None
    kept.failed("third crash", Died("the process ended"))
    assert kept.report == "third crash"
    kept.reset()
    kept.failed("hang", TimedOut("timed out"))
    assert kept.report == "hang"


@pytest.fixture
def nested(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    files = {"test_seeds.py": SEEDS, "unruly.py": UNRULY, "ends_on_import.py": "import os\nos.abort()\n"}
    lay_out_files(pytester, monkeypatch, files)
    return pytester


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_wrong_timeout_is_refused(nested: pytest.Pytester, value: str) -> None:
    result = run(nested, f"--attn-timeout={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--attn-timeout '{value}' is not a positive number of seconds" in said(result)


def test_crashes_fail_their_own_tests_only(nested: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled, "SHRINK_S", 0.0)
    names = ["mykernels:right", "unruly:crasher", "ends_on_import:attention", "mykernels:plain"]
    options = [f"--attn-impl={name}" for name in names]
    result = run(nested, *options, "-m", "correctness", "--attn-isolate", "-rA")
    result.assert_outcomes(passed=2, failed=2)
    passed = [line for line in result.outlines if line.startswith("PASSED")]
    assert [name for name in names if any(f"[{name}]" in line for line in passed)] == [names[0], names[3]]
    text = said(result)
    assert "the process ended by signal 11 (SIGSEGV)" in text
    assert "in crasher" in text  # where
    assert "the process ended by signal 6 (SIGABRT)" in text
    commands = repeat_commands(result)
    assert len(commands) == 2
    assert all("--attn-isolate" in command and "--attn-timeout" not in command for command in commands)


def test_a_hang_costs_its_timeout_once(nested: pytest.Pytester) -> None:
    began = time.monotonic()
    result = run(nested, "--attn-impl=unruly:sleeper", "--attn-timeout", "2", "-m", "correctness")
    took = time.monotonic() - began
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r"unruly:sleeper is wrong on .+", r"  timed out after 2 s$"])
    (command,) = repeat_commands(result)
    assert command[command.index("--attn-timeout") + 1] == "2"
    assert took < 60  # a search for a smaller case would be hundreds of timeouts
