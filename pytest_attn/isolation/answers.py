"""What a child can be asked: a request is a public method of :class:`Answers`, by its name."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import torch

from attn_impls.implementation import Implementation
from attn_impls.problem import Direction, Problem
from attn_impls.registry import discover
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.claims import judge_claim
from pytest_attn.correctness.judge import Verdict, judge
from pytest_attn.correctness.large import judge_last
from pytest_attn.correctness.properties import judge_property
from pytest_attn.frames import ErrorAsText, own_frames
from pytest_attn.isolation.description import describe
from pytest_attn.isolation.plain import rebuild
from pytest_attn.perf import device as devices
from pytest_attn.perf.contract import Contract
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.measure import measure_alone
from pytest_attn.perf.resources import resources_of


class Answers:
    """Answers requests in plain JSON values; implementations are found here, in the child, by name.

    Every argument is a plain JSON value: implementations by name or ``module:function``, the device as text, problems,
    cases and contracts by their ``to_dict`` forms.
    """

    def __init__(self) -> None:
        self._registry = discover()
        self._device = torch.device("cpu")
        self._instruments: dict[tuple[torch.device, Contract], Instruments] = {}

    def lost_device(self) -> str | None:
        """Return why the device of the last request is unusable for this process, or ``None``."""
        return devices.lost_device(self._device)

    def discover(self, device: str) -> dict[str, Any]:
        """Describe every implementation of the registry, and say what did not import."""
        self._use(device)
        found = self._registry.implementations.values()
        return {
            "implementations": [describe(impl, self._device.type) for impl in found],
            "broken": self._registry.broken,
        }

    def describe(self, impl: str, device: str) -> dict[str, Any]:
        """Describe one implementation."""
        return describe(self._resolve(impl, device), self._device.type)

    def also(self, impl: str, problem: dict[str, Any], device_type: str) -> str | None:
        """Apply the finer rule of an implementation's capabilities."""
        rule = self._registry.resolve(impl).capabilities.also
        return None if rule is None else rule(Problem.from_dict(problem), device_type)

    def judge(self, impl: str, case: dict[str, Any], direction: str, device: str) -> dict[str, Any]:
        """Judge one case; returns a verdict's ``tensors``, ``broken`` and, as ``frames``, what was raised."""
        found = self._resolve(impl, device)
        return self._told(judge(found, Case.from_dict(case), Direction(direction), self._device))

    def judge_last(self, impl: str, case: dict[str, Any], direction: str, device: str) -> dict[str, Any]:
        """Judge the last key head of one large case; returns a verdict's fields likewise."""
        found = self._resolve(impl, device)
        return self._told(judge_last(found, Case.from_dict(case), Direction(direction), self._device))

    def judge_property(self, impl: str, name: str, case: dict[str, Any], device: str) -> dict[str, Any] | None:
        """Check one property; returns a verdict's fields likewise, ``None`` outside the capabilities."""
        found = self._resolve(impl, device)
        verdict = judge_property(found, name, Case.from_dict(case), self._device)
        if verdict is None:
            return None
        return {
            "ratio": verdict.ratio,
            "where": verdict.where,
            "broken": verdict.broken,
            "frames": _frames(verdict.raised),
        }

    def judge_claim(self, impl: str, name: str, case: dict[str, Any], direction: str, device: str) -> dict[str, Any]:
        """Check one claim; returns a verdict's fields likewise."""
        found = self._resolve(impl, device)
        verdict = judge_claim(found, name, Case.from_dict(case), Direction(direction), self._device)
        return {"broken": verdict.broken, "frames": _frames(verdict.raised)}

    def measure(
        self,
        impl: str,
        problem: dict[str, Any],
        direction: str,
        device: str,
        contract: dict[str, Any],
        threads: int,
    ) -> dict[str, Any]:
        """Measure one problem with ``threads`` CPU threads; returns the ``record`` and its ``durations``."""
        found = self._resolve(impl, device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        instruments = self._instruments_for(rebuild(Contract, contract))
        measured = measure_alone(found, Problem.from_dict(problem), Direction(direction), instruments)
        self.give_back()
        return {"record": measured.record.to_dict(), "durations": list(measured.durations)}

    def resources(self, impl: str, device: str) -> dict[str, Any] | None:
        """Say what the compiled kernels of an implementation take."""
        return resources_of(self._resolve(impl, device))

    def give_back(self) -> None:
        """Leave the device's memory to the other children, which have caches of their own."""
        if self._device.type == "cuda" and devices.lost_device(self._device) is None:
            gc.collect()
            torch.cuda.empty_cache()

    def _told(self, verdict: Verdict) -> dict[str, Any]:
        self.give_back()
        return {
            "tensors": [dataclasses.asdict(tensor) for tensor in verdict.tensors],
            "broken": verdict.broken,
            "frames": _frames(verdict.raised),
        }

    def _instruments_for(self, contract: Contract) -> Instruments:
        key = self._device, contract
        if key not in self._instruments:
            self._instruments[key] = Instruments(self._device, contract)
        return self._instruments[key]

    def _resolve(self, impl: str, device: str) -> Implementation:
        self._use(device)
        return self._registry.resolve(impl)

    def _use(self, device: str) -> None:
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)


def _frames(error: BaseException | None) -> str | None:
    if isinstance(error, ErrorAsText):
        return error.frames
    return None if error is None else own_frames(error)
