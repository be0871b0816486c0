"""Dataclasses that went through JSON: :func:`dataclasses.asdict` makes plain values, :func:`rebuild` reads them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def rebuild(cls: type[T], data: Mapping[str, Any]) -> T:
    """Return the ``cls``, a dataclass, of ``asdict``'s form: its fields may be plain, tuples or dataclasses."""
    types = typing.get_type_hints(cls)
    return cls(**{name: _value(types[name], value) for name, value in data.items()})


def _value(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and value is not None:
        return rebuild(kind, value)
    return tuple(value) if typing.get_origin(kind) is tuple and value is not None else value
