"""How implementations are found: ours, other packages' entry points, and ``module:function``.

There is no global table: :func:`discover` builds a :class:`Registry` from the objects that modules hold, and its
caller keeps it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata

from attn_impls.adapt import UnknownImplementation, as_implementation, from_reference
from attn_impls.implementation import Implementation

ENTRY_POINT_GROUP = "attn_impls"
PACKAGE = "attn_impls"
# The order of charts, tables and test runs: from the plainest to the most specialised.
_ORDER = ("naive", "sdpa", "flash", "flex", "triton", "tiled")


@dataclass(frozen=True)
class Registry(Mapping[str, Implementation]):
    """Implementations by name, in order of discovery; ``broken`` holds entry points that failed, and why."""

    implementations: dict[str, Implementation] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Implementation:
        return self.implementations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.implementations)

    def __len__(self) -> int:
        return len(self.implementations)

    def resolve(self, name: str) -> Implementation:
        """Return the implementation called ``name``, or import it when ``name`` is ``module:function``.

        Raises :class:`UnknownImplementation`, with what is known, for anything else.
        """
        if name in self.implementations:
            return self.implementations[name]
        if ":" in name:
            return from_reference(name)
        if name in self.broken:
            raise UnknownImplementation(f"implementation {name!r} did not import: {self.broken[name]}")
        raise UnknownImplementation(
            f"unknown implementation {name!r}; known: {', '.join(self.implementations)}, or module:function"
        )


def discover() -> Registry:
    """Find all implementations: ours, then those of other packages' entry points in the group ``attn_impls``.

    Ours are the :class:`Implementation` objects in the modules of this package: a new one is one new file. An entry
    point names a module, whose objects are taken likewise, or one object. What fails to import is kept in
    :attr:`Registry.broken` with the reason, so that one broken kernel cannot take the others with it.
    """
    registry = Registry()
    # Ours are found without their entry point, so that a checkout that is not installed has them too.
    others = [(p.name, p.value) for p in metadata.entry_points(group=ENTRY_POINT_GROUP) if p.value != PACKAGE]
    for name, value in [*_our_modules(), *others]:
        try:
            found = _load(name, value)
        except Exception as error:
            registry.broken[name] = f"{type(error).__name__}: {error}"
            continue
        for item in found:
            if registry.implementations.setdefault(item.name, item) is not item:
                registry.broken[name] = f"the name {item.name!r} is taken already"
    return registry


def _our_modules() -> list[tuple[str, str]]:
    names = [info.name for info in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)]
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return [(name, f"{PACKAGE}.{name}") for name in names]


def _load(name: str, value: str) -> list[Implementation]:
    module_name, _, attribute = value.partition(":")
    module = importlib.import_module(module_name)
    if attribute:
        return [as_implementation(getattr(module, attribute), name)]
    return [item for item in vars(module).values() if isinstance(item, Implementation)]
