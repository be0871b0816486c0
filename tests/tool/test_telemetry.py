"""NVML, with a stand-in for its library: medians, names, whose processes, and nothing where it does not answer."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_attn.perf import telemetry
from pytest_attn.perf.telemetry import RUN_PID, NoTelemetry, Telemetry

CUDA = torch.device("cuda", 1)
POWER_CAP, THERMAL = 0x4, 0x40


class FakeNvml:
    """The part of ``pynvml`` that is used, for a device whose state a test sets; ``broken`` queries raise."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_FI_DEV_POWER_INSTANT, NVML_SUCCESS = 1, 0, 186, 0

    class NVMLError(Exception):
        """As NVML's."""

    def __init__(self) -> None:
        self.mhz, self.milliwatts, self.celsius, self.reasons = 1980, 350_000, 40, 0
        self.average_milliwatts, self.instant_status = 100_000, self.NVML_SUCCESS
        self.millijoules = 5_000_000
        self.pids = [os.getpid()]
        self.broken: set[str] = set()
        self.opened: list[str] = []

    def _answer(self, query: str, value: Any) -> Any:
        if query in self.broken:
            raise self.NVMLError(f"{query}: Not Supported")
        return value

    def nvmlInit(self) -> None:
        self._answer("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.opened.append(uuid)
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return int(self._answer("clock", self.mhz))

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return int(self._answer("temperature", self.celsius))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return int(self._answer("reasons", self.reasons))

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[int]) -> list[Any]:
        value = SimpleNamespace(nvmlReturn=self.instant_status, value=SimpleNamespace(uiVal=self.milliwatts))
        return [self._answer("fields", value)]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return int(self._answer("power", self.average_milliwatts))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return int(self._answer("energy", self.millijoules))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return list(self._answer("processes", [SimpleNamespace(pid=pid) for pid in self.pids]))


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234-abcd"))
    monkeypatch.delenv(RUN_PID, raising=False)
    return fake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(telemetry, "time", fake)
    return fake


@pytest.fixture
def seen(nvml: FakeNvml, clock: Clock) -> Telemetry:
    made = Telemetry(CUDA)
    made.watch("mine")
    return made


def look(seen: Telemetry, clock: Clock) -> None:
    """Take a sample, late enough to count."""
    clock.now += 1
    seen.look()


def collected(seen: Telemetry) -> dict[str, Any]:
    found = seen.collect("mine")
    assert found is not None
    return found


def test_the_device_is_found_by_its_uuid(nvml: FakeNvml, seen: Telemetry) -> None:
    assert nvml.opened == ["GPU-1234-abcd"]


def test_medians_and_their_number(nvml: FakeNvml, clock: Clock, seen: Telemetry) -> None:
    for nvml.mhz, nvml.milliwatts, nvml.celsius in ((1980, 300_000, 50), (1755, 690_500, 61), (1740, 700_000, 60)):
        look(seen, clock)
    assert collected(seen) == {
        "sm_mhz": 1755.0,
        "power_w": 690.5,
        "temp_c": 60.0,
        "clock_reasons": [],
        "foreign_processes": 0,
        "samples": 3,
    }


def test_a_throttled_device_says_why(nvml: FakeNvml, clock: Clock, seen: Telemetry) -> None:
    for nvml.reasons in (0, POWER_CAP, POWER_CAP | THERMAL, 0):
        look(seen, clock)
    assert collected(seen)["clock_reasons"] == ["hardware thermal slowdown", "software power cap"]


def test_samples_belong_to_what_is_watched_and_are_given_once(nvml: FakeNvml, clock: Clock, seen: Telemetry) -> None:
    look(seen, clock)
    seen.watch("other")
    nvml.mhz = 1000
    look(seen, clock)
    seen.watch("mine")
    look(seen, clock)
    assert collected(seen)["samples"] == 2
    assert seen.collect("mine") is None
    other = seen.collect("other")
    assert other is not None
    assert (other["samples"], other["sm_mhz"]) == (1, 1000.0)


def test_nothing_is_sampled_before_something_is_watched(nvml: FakeNvml, clock: Clock) -> None:
    idle = Telemetry(CUDA)
    look(idle, clock)
    assert idle.collect(None) is None


def test_looks_that_follow_too_closely_are_one_sample(clock: Clock, seen: Telemetry) -> None:
    for _ in range(100):  # a look each millisecond
        clock.now += 1e-3
        seen.look()
    assert 9 <= collected(seen)["samples"] <= 11


def test_whoever_takes_over_is_seen_at_once(clock: Clock, seen: Telemetry) -> None:
    seen.look()
    seen.watch("next")
    seen.look()
    assert seen.collect("next") is not None


def test_processes_of_others_are_counted_the_most_of_any_sample(
    nvml: FakeNvml, clock: Clock, seen: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = os.getpid(), os.getppid()
    child = 4_000_001
    monkeypatch.setattr(telemetry, "_parent", {child: mine}.get)
    for nvml.pids in ([mine], [mine, other, child, 4_000_002], [mine, child]):
        look(seen, clock)
    assert collected(seen)["foreign_processes"] == 2


def test_an_isolated_process_belongs_to_the_run_that_started_it(
    nvml: FakeNvml, clock: Clock, seen: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sibling, stranger = os.getppid(), 4_000_001, 4_000_002
    monkeypatch.setenv(RUN_PID, str(run))
    monkeypatch.setattr(telemetry, "_parent", {os.getpid(): run, sibling: run}.get)
    nvml.pids = [os.getpid(), run, sibling, stranger]
    look(seen, clock)
    assert collected(seen)["foreign_processes"] == 1


def test_the_parent_is_read_whatever_the_processs_name() -> None:
    assert telemetry._parent(os.getpid()) == os.getppid()
    assert telemetry._parent(2**30) is None


def test_where_this_process_is_not_named_no_other_is_foreign(nvml: FakeNvml, clock: Clock, seen: Telemetry) -> None:
    nvml.pids = [4_000_001]  # numbers of another namespace
    look(seen, clock)
    assert collected(seen)["foreign_processes"] is None


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("clock", "sm_mhz"),
        ("temperature", "temp_c"),
        ("reasons", "clock_reasons"),
        ("processes", "foreign_processes"),
        ("fields", "power_w"),
    ],
)
def test_what_nvml_refuses_is_null_and_the_rest_is_there(
    nvml: FakeNvml, clock: Clock, seen: Telemetry, query: str, key: str
) -> None:
    nvml.broken = {query}
    look(seen, clock)
    assert [name for name, value in collected(seen).items() if value is None] == [key]


def test_a_function_that_an_old_package_has_not_is_null(
    nvml: FakeNvml, clock: Clock, seen: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetCurrentClocksEventReasons")
    look(seen, clock)
    assert collected(seen)["clock_reasons"] is None


def test_power_is_the_momentary_one_and_the_average_only_where_that_is_missing(
    nvml: FakeNvml, clock: Clock, seen: Telemetry
) -> None:
    look(seen, clock)
    assert collected(seen)["power_w"] == 350.0
    nvml.instant_status = 3  # not supported
    look(seen, clock)
    assert collected(seen)["power_w"] == 100.0


def test_energy_is_in_joules(nvml: FakeNvml, seen: Telemetry) -> None:
    assert seen.joules() == 5000.0
    nvml.broken = {"energy"}
    assert seen.joules() is None


def test_without_the_package_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoTelemetry, match=r"^nvidia-ml-py is not installed$"):
        Telemetry(CUDA)


def test_without_the_drivers_library_the_reason_is_said(nvml: FakeNvml) -> None:
    nvml.broken = {"init"}
    with pytest.raises(NoTelemetry, match=r"^NVML: init: Not Supported$"):
        Telemetry(CUDA)
