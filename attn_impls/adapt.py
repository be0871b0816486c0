"""A stranger's function as an implementation: imported by ``module:function``, called as its signature asks."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attn_impls.implementation import AttentionFn, Capabilities, Implementation
from attn_impls.problem import Problem

_CAUSAL_NAMES = ("causal", "is_causal")
_SCALE_NAMES = ("scale", "softmax_scale", "sm_scale")


class UnknownImplementation(LookupError):
    """A name that no implementation has, or a ``module:function`` that cannot be used as one."""


def from_reference(reference: str) -> Implementation:
    """Import ``module:function``, with the current directory on the path, and wrap it as an implementation.

    Its name is ``reference``, also where the object is an :class:`Implementation` with another: by that it is found
    again, in another process or by the command that repeats a failure.

    Raises :class:`UnknownImplementation` when it cannot be imported or is not callable.
    """
    module_name, _, attribute = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        target = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except Exception as error:
        raise UnknownImplementation(f"cannot import {reference!r}: {type(error).__name__}: {error}") from error
    found = copy.copy(as_implementation(target, reference))
    object.__setattr__(found, "name", reference)  # not dataclasses.replace, which calls a subclass's own __init__
    return found


def as_implementation(target: Any, name: str) -> Implementation:
    """Wrap ``target``, a function, as an implementation called ``name``; an implementation comes back as it is.

    The function is called as ``fn(q, k, v, problem)`` when it has a parameter ``problem``, otherwise as
    ``fn(q, k, v)`` plus the keywords that it names: ``causal`` or ``is_causal``, and ``scale``, ``softmax_scale`` or
    ``sm_scale``. What it can do is its attribute ``capabilities`` when it has one. Otherwise the modest set is
    assumed: equal lengths and heads, every dtype, the full mask, and the causal one where it can be asked for. An
    attribute ``kernels`` is :attr:`Implementation.kernels`.

    Raises :class:`UnknownImplementation` when ``target`` is not callable, or not with these arguments.
    """
    if isinstance(target, Implementation):
        return target
    if not callable(target):
        raise UnknownImplementation(f"{name!r} is a {type(target).__name__}, not a function of (q, k, v, problem)")
    fn, inferred = _adapted(target, name)
    declared = getattr(target, "capabilities", None)
    module = sys.modules.get(getattr(target, "__module__", ""))
    version = str(getattr(module, "__version__", "unversioned"))
    return Implementation(
        name,
        fn,
        declared if isinstance(declared, Capabilities) else inferred,
        summary=(inspect.getdoc(target) or "").partition("\n")[0],
        version=lambda: version,
        declared=isinstance(declared, Capabilities),
        kernels=kernels if isinstance(kernels := getattr(target, "kernels", ""), str) else "",
    )


def _adapted(target: Callable[..., Any], reference: str) -> tuple[AttentionFn, Capabilities]:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # a builtin without a signature
        signature = inspect.signature(lambda *arguments: None)
    parameters = signature.parameters
    if "problem" in parameters:
        _check_call(signature, reference, ["q", "k", "v", "problem"])
        return target, Capabilities()
    causal = next((name for name in _CAUSAL_NAMES if name in parameters), None)
    scale = next((name for name in _SCALE_NAMES if name in parameters), None)
    _check_call(signature, reference, ["q", "k", "v"], [name for name in (causal, scale) if name is not None])

    def call(q: Any, k: Any, v: Any, problem: Problem) -> Any:
        keywords: dict[str, Any] = {}
        if causal is not None:
            keywords[causal] = problem.mask.kind == "causal"
        if scale is not None:
            keywords[scale] = problem.softmax_scale
        return target(q, k, v, **keywords)

    return call, Capabilities(masks=frozenset({"full", "causal"} if causal else {"full"}), scale=scale is not None)


def _check_call(signature: inspect.Signature, reference: str, names: list[str], keywords: Sequence[str] = ()) -> None:
    try:
        signature.bind(*names, **dict.fromkeys(keywords))
    except TypeError as error:
        called = ", ".join([*names, *(f"{keyword}=..." for keyword in keywords)])
        raise UnknownImplementation(f"{reference!r} cannot be called as fn({called}): {error}") from None
