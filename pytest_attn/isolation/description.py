"""An implementation as JSON, and what stands for it in the parent.

The stand-in knows what the implementation claims and cannot be called, so that a crash on import, in a probe or in a
call stays in the child.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from attn_impls.implementation import Capabilities, HeadDims, Implementation
from attn_impls.problem import Problem
from attn_impls.registry import Registry
from pytest_attn.probe import why_missing

Also = Callable[[str, Problem, str], str | None]
"""``(implementation, problem, device type)`` to why not, asked of a child."""

_SETS = ("devices", "dtypes", "masks")


@dataclass(frozen=True)
class IsolatedRegistry(Registry):
    """A registry of stand-ins; ``module:function`` is imported by ``describe``, in a child."""

    describe: Callable[[str], Implementation] | None = None

    def resolve(self, name: str) -> Implementation:
        """Return the stand-in of ``name``. Raises :class:`~attn_impls.UnknownImplementation` for an unknown one."""
        if name in self.implementations or ":" not in name or self.describe is None:
            return super().resolve(name)
        return self.describe(name)


def describe(impl: Implementation, device_type: str) -> dict[str, Any]:
    """Return what :func:`stand_in` needs, with why ``impl`` cannot run on ``device_type``."""
    claims = {field.name: getattr(impl.capabilities, field.name) for field in dataclasses.fields(Capabilities)}
    claims |= {name: sorted(claims[name]) for name in _SETS}
    claims["head_dims"] = dataclasses.asdict(impl.capabilities.head_dims)
    claims["also"] = impl.capabilities.also is not None
    return {
        "name": impl.name,
        "capabilities": claims,
        "summary": impl.summary,
        "version": impl.version_or_unknown(),
        "how_to_get": impl.how_to_get,
        "declared": impl.declared,
        "missing": why_missing(impl, device_type),
    }


def stand_in(data: Mapping[str, Any], also: Also) -> Implementation:
    """Return the implementation that ``data`` from :func:`describe` stands for; ``also`` applies its finer rule."""
    name, version, missing = str(data["name"]), str(data["version"]), data["missing"]
    claims = dict(data["capabilities"])
    claims |= {key: frozenset(claims[key]) for key in _SETS}
    claims["head_dims"] = HeadDims(**claims["head_dims"])
    needed = claims["min_compute_capability"]
    claims["min_compute_capability"] = None if needed is None else tuple(needed)
    claims["also"] = (lambda problem, device_type: also(name, problem, device_type)) if claims["also"] else None
    return Implementation(
        name,
        _refuse(name),
        Capabilities(**claims),
        data["summary"],
        probe=lambda: missing,
        version=lambda: version,
        how_to_get=data["how_to_get"],
        declared=data["declared"],
    )


def unknown_stand_in(name: str) -> Implementation:
    """Return what stands for an implementation whose description could not be had: judging it tells the reason."""
    return Implementation(name, _refuse(name), version=lambda: "unknown", declared=False)


def _refuse(name: str) -> Callable[..., NoReturn]:
    def call(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(f"{name} runs in a process of its own and cannot be called from this one")

    return call
