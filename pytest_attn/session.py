"""What one pytest run knows about attention: device, implementations, grid, results. Kept in ``config.stash``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

from attn_impls.adapt import UnknownImplementation
from attn_impls.grids import UnknownGrid, load_grid
from attn_impls.implementation import Implementation
from attn_impls.problem import Direction, Problem
from attn_impls.registry import Registry, discover
from pytest_attn import options
from pytest_attn.perf.contract import Contract, contract_for
from pytest_attn.perf.record import Record, Run

if TYPE_CHECKING:
    import torch

    from pytest_attn.correctness.case import Case


@dataclass
class Accuracy:
    """How one implementation did over the correctness cases of this run."""

    cases: int = 0
    worst: float = 0.0
    where: str = ""


@dataclass
class AttnSession:
    """Built on first need, so that a run that has nothing to do with attention imports no torch.

    ``missing`` maps implementations that cannot run here to the reason; ``broken`` entry points likewise.
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

    @cached_property
    def grid_name(self) -> str:
        """The grids asked for, joined by ``+``."""
        return "+".join(self._grid_names())

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """The problems of the grid by id."""
        return {problem.id: problem for name in self._grid_names() for problem in load_grid(name)}

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

    def judged(self, name: str, ratio: float, where: str) -> None:
        """Note the error ratio of one case for the summary."""
        accuracy = self.accuracy.setdefault(name, Accuracy())
        accuracy.cases += 1
        if ratio > accuracy.worst:
            accuracy.worst, accuracy.where = ratio, where

    def end_if_device_is_lost(self, report: str | None = None) -> None:
        """End the whole run when the CUDA device has become unusable; ``report`` says what happened just before.

        Whatever ran next in this process would fail with the same error, and hypothesis would shrink to a case that
        has nothing to do with it. What was measured is still written.
        """
        from pytest_attn.perf.device import lost_device

        if report is not None and self.lost is None and (error := lost_device(self.device)) is not None:
            self.lost = f"the CUDA device is unusable ({error}) after this:\n{report}"
        if self.lost is not None:
            pytest.exit(self.lost, returncode=pytest.ExitCode.TESTS_FAILED)

    def run(self) -> Run:
        """Return the run so far, with what it says about itself."""
        from pytest_attn.perf.device import environment, machine

        implementations = {
            name: {"version": impl.version_or_unknown(), "missing": self.missing.get(name)}
            for name, impl in (self.registry.implementations | self.selected).items()
        }
        records = (*self.records, *self.unsupported.values())
        return Run(records, self.grid_name, machine(self.device), environment(), implementations)


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
    registry = discover()
    names = options.impl_names(config)
    try:
        selected = {name: registry.resolve(name) for name in names} or dict(registry.implementations)
    except UnknownImplementation as error:
        raise pytest.UsageError(str(error)) from None
    known = registry.implementations | selected
    missing = {name: why for name, impl in known.items() if (why := impl.why_unavailable(device.type)) is not None}
    for name in names:
        if name in missing:
            raise pytest.UsageError(f"implementation {name!r} cannot run here: it {_clause(missing[name])}")
    session = AttnSession(config, device, registry, selected, missing, bool(names), contract)
    try:
        session.problems  # noqa: B018 - read for its errors
        session.case  # noqa: B018
    except UnknownGrid as error:
        raise pytest.UsageError(f"--attn-grid: {error}") from None
    except ValueError as error:
        raise pytest.UsageError(f"--attn-repro: {error}") from None
    return session


def _clause(reason: str) -> str:
    return reason if reason.startswith("needs") else f"is missing: {reason}"
