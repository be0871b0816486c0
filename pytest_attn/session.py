"""What one pytest run knows about attention: device, implementations, grid, results. Kept in ``config.stash``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from attn_impls.adapt import UnknownImplementation
from attn_impls.grids import UnknownGrid, load_grid
from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import Direction, Problem
from attn_impls.registry import Registry, discover
from pytest_attn import options
from pytest_attn.perf.contract import Contract, contract_for
from pytest_attn.perf.record import Record, Run, cell_key
from pytest_attn.probe import why_missing

if TYPE_CHECKING:
    import torch

    from pytest_attn.correctness.case import Case
    from pytest_attn.correctness.judge import Verdict
    from pytest_attn.groups import Groups
    from pytest_attn.isolation.workers import Workers
    from pytest_attn.perf.copies import Copies
    from pytest_attn.perf.journal import Journal
    from pytest_attn.perf.measure import Measured
    from pytest_attn.perf.untraced import TracedRun
    from pytest_attn.settled import Settled


@dataclass
class Accuracy:
    """How one implementation did over the correctness cases of this run.

    ``ratios`` holds the worst error over its budget by each rule; ``where`` is the tensor and case of the ``worst``.
    """

    cases: int = 0
    ratios: dict[str, float] = field(default_factory=dict)
    worst: float = 0.0
    where: str = ""

    def add(self, other: Accuracy) -> None:
        """Take in how it did over other cases."""
        self.cases += other.cases
        for rule, ratio in other.ratios.items():
            self.ratios[rule] = max(self.ratios.get(rule, 0.0), ratio)
        if other.worst > self.worst:
            self.worst, self.where = other.worst, other.where


@dataclass
class AttnSession:
    """Built on first need, so that a run that has nothing to do with attention imports no torch.

    ``missing`` maps implementations that cannot run here to the reason; ``broken`` entry points likewise.
    ``resumed`` maps a record's key to what an earlier, unfinished run measured. ``workers`` runs the implementations
    in processes of their own, where that was asked for; those in ``registry`` then only stand for them. ``cells`` are
    the timed tests that were collected, ``journaled`` those of them whose result is in the journal. ``traced_by`` is
    the run that a profiler looked at in place of this one; ``unwritten`` says why the JSON could not be written.
    """

    config: pytest.Config
    device: torch.device
    registry: Registry
    selected: dict[str, Implementation]
    missing: dict[str, str]
    explicit: bool
    contract: Contract
    records: list[Record] = field(default_factory=list)
    unsupported: dict[tuple[str, str, str], Record] = field(default_factory=dict)
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    differentiable: set[str] = field(default_factory=set)
    lost: str | None = None
    journal: Journal | None = None
    resumed: dict[tuple[str, str, str], Measured] = field(default_factory=dict)
    workers: Workers | None = None
    cells: list[tuple[str, str, str]] = field(default_factory=list)
    journaled: set[tuple[str, str, str]] = field(default_factory=set)
    traced_by: TracedRun | None = None
    unwritten: str | None = None
    _resources: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)

    @property
    def isolate(self) -> bool:
        """Whether implementations run in processes of their own, and never in this one."""
        return self.workers is not None

    @cached_property
    def machine(self) -> Mapping[str, Any]:
        """What must agree for two runs to be compared, as it was when first asked for."""
        from pytest_attn.perf.device import machine

        return machine(self.device)

    @cached_property
    def groups(self) -> Groups:
        """The timed cells of this run, by what is measured together."""
        from pytest_attn.groups import Groups

        return Groups(self.cells)

    @cached_property
    def settled(self) -> Settled:
        """The crash, hang or lack of memory that the running test keeps."""
        from pytest_attn.settled import Settled

        return Settled()

    @cached_property
    def grid_name(self) -> str:
        """The grids asked for, joined by ``+``."""
        return "+".join(self._grid_names())

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """The problems of the grid by id, in its order; of those the shard's, whatever can run on this machine."""
        problems = {problem.id: problem for name in self._grid_names() for problem in load_grid(name)}
        part = options.shard(self.config)
        if part is None:
            return problems
        first, step = part
        return dict(list(problems.items())[first - 1 :: step])

    @property
    def shard(self) -> str | None:
        """``i/n`` where this run takes one part of the grid only."""
        part = options.shard(self.config)
        return None if part is None else f"{part[0]}/{part[1]}"

    def _grid_names(self) -> list[str]:
        default = ["smoke"] if self.device.type == "cpu" else ["lab5"]
        return list(dict.fromkeys(self.config.getoption("attn_grid") or default))

    @property
    def case(self) -> tuple[Case, Direction] | None:
        """The one case that ``--attn-repro`` asks for."""
        data = options.repro(self.config)
        if data is None:
            return None
        from pytest_attn.correctness.case import Case

        direction = Direction(data["direction"])
        return Case.from_dict({key: data[key] for key in ("problem", "regime", "seed")}), direction

    @property
    def property(self) -> str | None:
        """The property that ``--attn-repro`` asks for; ``None`` where it asks for a comparison with the oracle."""
        data = options.repro(self.config)
        if data is None or "property" not in data:
            return None
        from pytest_attn.correctness.properties import PROPERTIES

        if data["property"] not in PROPERTIES:
            raise ValueError(f"property {data['property']!r} is not one of {', '.join(PROPERTIES)}")
        return str(data["property"])

    def judged(self, verdict: Verdict) -> None:
        """Note the error ratios of one case for the summary."""
        found = Accuracy(1, dict(verdict.ratios), verdict.ratio, verdict.where)
        self.accuracy.setdefault(verdict.impl, Accuracy()).add(found)

    def outcome(self, impl: Implementation, problem: Problem, direction: Direction) -> Measured | Unavailable:
        """Measure a cell, or return what was measured of it already.

        :class:`~attn_impls.Unavailable` is returned for an implementation that turned out not to run here.
        """
        if (resumed := self.resumed.get(cell_key(impl.name, problem, direction))) is not None:
            return resumed
        if self.workers is None:
            return self.groups.outcome(self, impl, problem, direction)
        try:
            return self.workers.measure(impl, problem, direction, self.device, self.contract)
        except Unavailable as error:
            return error

    def end_to_end(self, impl: Implementation, problem: Problem, copies: Copies) -> Measured | Unavailable:
        """Measure the forward from host memory and back, or return what an earlier run measured of it."""
        from pytest_attn.perf.copies import HostInputs, end_to_end
        from pytest_attn.perf.measure import measure_group

        key = cell_key(f"{impl.name}+{copies.id}", problem, Direction.FWD)
        if (resumed := self.resumed.get(key)) is not None:
            return resumed
        try:
            wrapped = end_to_end(impl, copies, problem, self.device)
        except Unavailable as error:
            return error
        (outcome,) = measure_group([wrapped], problem, Direction.FWD, self.groups.instruments(self), HostInputs)
        assert outcome is not None, "nobody else could have left the device unusable"
        return outcome

    def finished(self, measured: Measured) -> None:
        """Keep what a cell measured, now that its test reports it."""
        self.records.append(measured.record)
        self.keep(measured)

    def keep(self, measured: Measured) -> None:
        """Write what a cell measured to the journal, unless it is there.

        Ends the run when the journal cannot be written: the JSON of a full disk would be lost as well.
        """
        key = measured.record.key
        if self.journal is None or key in self.resumed or key in self.journaled:
            return
        self.journaled.add(key)
        try:
            self.journal.append(measured)
        except OSError as error:
            sentence = f"cannot write {self.journal.path}: {error.strerror or error}"
            pytest.exit(sentence, returncode=pytest.ExitCode.INTERNAL_ERROR)

    def end_if_device_is_lost(self, report: str | None = None) -> None:
        """End the whole run when the CUDA device has become unusable; ``report`` says what happened just before.

        Whatever ran next in this process would fail with the same error, and hypothesis would shrink to a case that
        has nothing to do with it. What was measured is still written.
        """
        from pytest_attn.perf.device import lost_device

        if self.isolate:
            return  # each process looks at its own
        if report is not None and self.lost is None and (error := lost_device(self.device)) is not None:
            self.lost = f"the CUDA device is unusable ({error}) after this:\n{report}"
        if self.lost is not None:
            pytest.exit(self.lost, returncode=pytest.ExitCode.TESTS_FAILED)

    def run(self) -> Run:
        """Return the run so far, with what it says about itself."""
        from pytest_attn.perf.device import environment

        implementations: dict[str, dict[str, Any]] = {}
        timed = {record.impl for record in self.records if record.time_s is not None}
        for name, impl in (self.registry.implementations | self.selected).items():
            implementations[name] = {"version": impl.version_or_unknown(), "missing": self.missing.get(name)}
            if impl.name in timed and (resources := self._resources_of(impl)) is not None:
                implementations[name]["resources"] = resources
        records = (*self.records, *self.unsupported.values())
        return Run(
            records,
            self.grid_name,
            self.machine,
            environment(),
            implementations,
            instruments=self.groups.described(),
            shard=self.shard,
        )

    def _resources_of(self, impl: Implementation) -> Mapping[str, Any] | None:
        if impl.name not in self._resources:
            from pytest_attn.perf.resources import resources_of

            workers = self.workers
            found = resources_of(impl) if workers is None else workers.resources(impl, self.device)
            self._resources[impl.name] = found
        return self._resources[impl.name]


# Long enough for five steps of the device's energy counter.
_ENERGY_S = 0.6

_KEY = pytest.StashKey[AttnSession]()


def existing_session(config: pytest.Config) -> AttnSession | None:
    """Return the session if something in this run needed one."""
    return config.stash.get(_KEY, None)


def attn_session(config: pytest.Config) -> AttnSession:
    """Return the session, building it on the first call.

    Raises ``pytest.UsageError`` with what is allowed when an option names something that is not there.
    """
    session = config.stash.get(_KEY, None)
    if session is None:
        session = config.stash[_KEY] = _build(config)
    return session


def _build(config: pytest.Config) -> AttnSession:
    from pytest_attn.perf.device import pick_device

    try:
        device = pick_device(config.getoption("attn_device"))
        contract = contract_for(config.getoption("attn_timer"), device.type)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)
    workers = _workers(config)
    if config.getoption("attn_energy"):
        if device.type != "cuda":
            raise pytest.UsageError("--attn-energy needs a CUDA device: it reads the device's own counter")
        contract = dataclasses.replace(contract, energy_s=_ENERGY_S)
    if workers is not None:
        contract = dataclasses.replace(contract, isolated=True)
    if config.getoption("attn_brief"):
        contract = contract.shortened()
    registry = discover() if workers is None else _discover_isolated(workers, device)
    names = options.impl_names(config)
    try:
        selected = {name: registry.resolve(name) for name in names} or dict(registry.implementations)
    except UnknownImplementation as error:
        raise pytest.UsageError(str(error)) from None
    known = registry.implementations | selected
    missing = {name: why for name, impl in known.items() if (why := why_missing(impl, device.type)) is not None}
    for name in names:
        if name in missing:
            raise pytest.UsageError(f"implementation {name!r} cannot run here: it {_clause(missing[name])}")
    session = AttnSession(config, device, registry, selected, missing, bool(names), contract, workers=workers)
    try:
        problems = session.problems
        session.case  # noqa: B018
        session.property  # noqa: B018
    except UnknownGrid as error:
        raise pytest.UsageError(f"--attn-grid: {error}") from None
    except ValueError as error:
        raise pytest.UsageError(f"--attn-repro: {error}") from None
    if (traced := config.getoption("attn_untraced")) is not None:
        from pytest_attn.perf.untraced import traced_run

        if workers is not None or contract.timer == "kineto":
            raise pytest.UsageError("--attn-untraced goes with neither --attn-isolate nor --attn-timer kineto")
        try:
            session.traced_by = traced_run(traced, session.machine, contract.id)
        except ValueError as error:
            raise pytest.UsageError(f"--attn-untraced: {error}") from None
    if session.shard is not None and not problems:
        raise pytest.UsageError(f"--attn-shard {session.shard}: the grid {session.grid_name} has fewer problems")
    return session


def _workers(config: pytest.Config) -> Workers | None:
    if not options.isolate(config):
        return None
    from pytest_attn.isolation.workers import Workers

    workers = Workers(options.timeout(config))
    config.add_cleanup(workers.close)
    return workers


def _discover_isolated(workers: Workers, device: torch.device) -> Registry:
    from pytest_attn.isolation.worker import Ended

    try:
        return workers.discover(device)
    except Ended as end:
        raise pytest.UsageError(f"implementations cannot be looked for: {end.explain()}") from None


def _clause(reason: str) -> str:
    return reason if reason.startswith("needs") else f"is missing: {reason}"
