"""One child process for each implementation, and what its end means: a verdict, a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch

from attn_impls.implementation import Implementation
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.budget import TensorVerdict
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.claims import ClaimVerdict
from pytest_attn.correctness.judge import Verdict
from pytest_attn.correctness.properties import PROPERTIES, PropertyVerdict
from pytest_attn.isolation.description import IsolatedRegistry, stand_in, unknown_stand_in
from pytest_attn.isolation.plain import rebuild
from pytest_attn.isolation.worker import Ended, RemoteError, Worker
from pytest_attn.out_of_memory import NoRoom
from pytest_attn.perf.contract import Contract
from pytest_attn.perf.measure import Measured
from pytest_attn.perf.record import Record
from pytest_attn.perf.resources import unknown_resources


class Workers:
    """Children by implementation, started when first needed and kept, since starting CUDA takes seconds.

    A child does not run ``conftest.py``: what that sets in this process, such as torch's matmul precision, does not
    hold in the child; environment variables do.

    Args:
        timeout: seconds that one case or one measurement may take, building and compiling included; or ``None``.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        self._workers: dict[str, Worker] = {}
        # Finds and describes implementations, and may be ended by importing one of them.
        self._scout = Worker(timeout)

    def discover(self, device: torch.device) -> IsolatedRegistry:
        """Return what :func:`attn_impls.discover` finds, in a child; nothing of an implementation runs here.

        Raises :class:`Ended` when finding them ends the child: an installed package's entry point crashes on import.
        """
        answer = self._scout.request("discover", device=str(device))
        found = {data["name"]: stand_in(data, self._also) for data in answer["implementations"]}

        def describe(name: str) -> Implementation:
            try:
                return stand_in(self._scout.request("describe", impl=name, device=str(device)), self._also)
            except Ended:
                return unknown_stand_in(name)

        return IsolatedRegistry(found, answer["broken"], describe)

    def judge(self, impl: Implementation, case: Case, direction: Direction, device: torch.device) -> Verdict:
        """Do as :func:`pytest_attn.correctness.judge.judge`, in the child of ``impl``.

        A child that ends is a verdict: ``broken`` says how, with its last lines, and ``raised`` is the :class:`Ended`.
        What the implementation raised is a :class:`RemoteError` with its frames as text.
        """
        return self._verdict("judge", impl, case, direction, device)

    def judge_last(self, impl: Implementation, case: Case, direction: Direction, device: torch.device) -> Verdict:
        """Do as :func:`pytest_attn.correctness.large.judge_last`, in the child of ``impl``.

        Ends and exceptions are told as by :meth:`judge`. Out of memory, it tries once more in a fresh child, with no
        other beside it: an idle one has a CUDA context and all of each segment in which anything of its lives on.
        """
        try:
            return self._verdict("judge_last", impl, case, direction, device)
        except NoRoom:
            self.close()
            return self._verdict("judge_last", impl, case, direction, device)

    def judge_property(
        self, impl: Implementation, name: str, case: Case, device: torch.device
    ) -> PropertyVerdict | None:
        """Do as :func:`pytest_attn.correctness.properties.judge_property`, in the child of ``impl``.

        Ends and exceptions are told as by :meth:`judge`.
        """
        rule = PROPERTIES[name]
        fitted = dataclasses.replace(case, problem=rule.fit(case.problem))
        verdict = PropertyVerdict(impl.name, name, rule.statement, fitted, str(device))
        try:
            answer = self._of(impl).request(
                "judge_property", impl=impl.name, name=name, case=case.to_dict(), device=str(device)
            )
        except Ended as end:
            return dataclasses.replace(verdict, broken=end.explain(), raised=end.with_traceback(None))
        if answer is None:
            return None
        found = {key: answer[key] for key in ("ratio", "where", "broken")}
        return dataclasses.replace(verdict, **found, raised=_raised(answer))

    def judge_claim(
        self, impl: Implementation, name: str, case: Case, direction: Direction, device: torch.device
    ) -> ClaimVerdict:
        """Do as :func:`pytest_attn.correctness.claims.judge_claim`, in the child of ``impl``.

        Ends and exceptions are told as by :meth:`judge`.
        """
        verdict = ClaimVerdict(impl.name, name, case, direction, str(device))
        try:
            answer = self._of(impl).request(
                "judge_claim",
                impl=impl.name,
                name=name,
                case=case.to_dict(),
                direction=direction.value,
                device=str(device),
            )
        except Ended as end:
            return dataclasses.replace(verdict, broken=end.explain(), raised=end.with_traceback(None))
        return dataclasses.replace(verdict, broken=answer["broken"], raised=_raised(answer))

    def measure(
        self,
        impl: Implementation,
        problem: Problem,
        direction: Direction,
        device: torch.device,
        contract: Contract,
    ) -> Measured:
        """Do as :func:`pytest_attn.perf.measure.measure_alone`, in the child of ``impl``.

        A child that ends, or fails before it measures, is a record with status ``error`` that says how.
        """
        try:
            answer = self._of(impl).request(
                "measure",
                impl=impl.name,
                problem=problem.to_dict(),
                direction=direction.value,
                device=str(device),
                contract=dataclasses.asdict(contract),
                threads=torch.get_num_threads(),
            )
        except (Ended, RemoteError) as error:
            version = impl.version_or_unknown()
            record = Record(impl.name, problem, direction, "error", contract.id, str(error), impl_version=version)
            return Measured(record)
        return Measured(Record.from_dict(answer["record"]), tuple(answer["durations"]))

    def resources(self, impl: Implementation, device: torch.device) -> dict[str, Any] | None:
        """Do as :func:`pytest_attn.perf.resources.resources_of`, in a child."""
        try:
            answer: dict[str, Any] | None = self._scout.request("resources", impl=impl.name, device=str(device))
        except (Ended, RemoteError) as error:
            return unknown_resources(str(error))
        return answer

    def close(self) -> None:
        """End all children; the next request to one starts it again."""
        for worker in (self._scout, *self._workers.values()):
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _verdict(
        self, request: str, impl: Implementation, case: Case, direction: Direction, device: torch.device
    ) -> Verdict:
        verdict = Verdict(impl.name, case, direction, str(device))
        try:
            answer = self._of(impl).request(
                request, impl=impl.name, case=case.to_dict(), direction=direction.value, device=str(device)
            )
        except Ended as end:
            # Our own frames explain nothing.
            return dataclasses.replace(verdict, broken=end.explain(), raised=end.with_traceback(None))
        tensors = tuple(rebuild(TensorVerdict, tensor) for tensor in answer["tensors"])
        return dataclasses.replace(verdict, tensors=tensors, broken=answer["broken"], raised=_raised(answer))

    def _of(self, impl: Implementation) -> Worker:
        return self._workers.setdefault(impl.name, Worker(self.timeout))

    def _also(self, name: str, problem: Problem, device_type: str) -> str | None:
        try:
            reason: str | None = self._scout.request(
                "also", impl=name, problem=problem.to_dict(), device_type=device_type
            )
        except Ended:
            return None  # inside, so that what happens is reported as a result
        return reason


def _raised(answer: Mapping[str, Any]) -> RemoteError | None:
    return None if answer["frames"] is None else RemoteError(answer["broken"], answer["frames"])
