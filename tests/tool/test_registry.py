"""How implementations are found, adapted and refused."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from attn_impls import Capabilities, Implementation, Registry, UnknownImplementation, as_implementation
from attn_impls.adapt import from_reference
from attn_impls.problem import CAUSAL, FULL, Problem
from attn_impls.registry import discover

SQUARE = Problem(1, 4, 4, 16, 16, 64, "bf16", FULL)


def change(problem: Problem, **changes: object) -> Problem:
    return dataclasses.replace(problem, **changes)  # type: ignore[arg-type]


def test_ours_in_the_order_of_charts() -> None:
    registry = discover()
    names = list(registry)
    first = [
        "naive",
        "sdpa-math",
        "sdpa-flash",
        "sdpa-efficient",
        "sdpa-cudnn",
        "flash-attn",
        "flash-attn-4",
        "flex",
        "triton",
    ]
    assert names[: len(first)] == first
    rungs = ["tiled-global", "tiled-smem", "tiled-pad", "tiled-coalesced", "tiled-unroll", "tiled-regs"]
    rungs += ["tiled-mma", "tiled-async", "tiled-wgmma", "tiled-ws", "tiled-overlap", "tiled-hopper"]
    assert names[len(first) :] == ["tiled-torch", "tiled-seq", "tiled-cpu", *rungs]
    assert all(name == impl.name and impl.summary for name, impl in registry.items())
    assert len(registry) == len(names)


Publish = Callable[..., None]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Pretend that other packages are installed: ``publish(name="module" or "module:object")``."""
    real = metadata.entry_points

    def published(**points: str) -> None:
        fakes = [SimpleNamespace(name=name, value=value, group="attn_impls") for name, value in points.items()]

        def entry_points(**wanted: str) -> object:
            return fakes if wanted == {"group": "attn_impls"} else real(**wanted)

        monkeypatch.setattr(metadata, "entry_points", entry_points)

    return published


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stranger's module with two implementations and a plain function."""
    module = ModuleType("stranger")
    module.one = Implementation("one", lambda q, k, v, problem: q)
    module.two = Implementation("two", lambda q, k, v, problem: q)
    module.naive_too = Implementation("naive", lambda q, k, v, problem: q)
    module.plain = lambda q, k, v: q
    monkeypatch.setitem(sys.modules, "stranger", module)
    return module


def test_entry_point_to_a_module(publish: Publish, others: ModuleType) -> None:
    publish(kernels="stranger")
    registry = discover()
    assert list(registry)[-2:] == ["one", "two"]
    assert registry["one"] is others.one


def test_entry_point_to_an_object_bears_its_name(publish: Publish, others: ModuleType) -> None:
    publish(**{"my-plain": "stranger:plain", "ignored": "stranger:one"})
    registry = discover()
    assert list(registry)[-2:] == ["my-plain", "one"]
    assert registry.broken == {}


def test_a_taken_name_is_kept_by_the_first(publish: Publish, others: ModuleType) -> None:
    publish(kernels="stranger")
    registry = discover()
    assert registry["naive"] is not others.naive_too
    assert registry.broken == {"kernels": "the name 'naive' is taken already"}


def test_a_broken_entry_point_takes_no_other_with_it(publish: Publish, others: ModuleType) -> None:
    publish(gone="no_such_module_at_all", lacking="stranger:nothing", data="sys:path", fine="stranger:one")
    registry = discover()
    assert "one" in registry
    assert "naive" in registry
    assert set(registry.broken) == {"gone", "lacking", "data"}
    assert registry.broken["gone"] == "ModuleNotFoundError: No module named 'no_such_module_at_all'"
    assert registry.broken["lacking"].startswith("AttributeError: ")
    assert registry.broken["data"].endswith("'data' is a list, not a function of (q, k, v, problem)")
    with pytest.raises(
        UnknownImplementation, match="implementation 'gone' did not import: ModuleNotFoundError: No mod"
    ):
        registry.resolve("gone")


def test_our_own_entry_point_is_not_counted_twice(publish: Publish) -> None:
    publish(builtin="attn_impls")
    registry = discover()
    assert registry.broken == {}
    assert len(set(registry)) == len(registry)


def test_resolve_lists_what_is_known() -> None:
    with pytest.raises(UnknownImplementation) as refused:
        Registry({"naive": Implementation("naive", print), "flex": Implementation("flex", print)}).resolve("nave")
    assert str(refused.value) == "unknown implementation 'nave'; known: naive, flex, or module:function"


@pytest.fixture
def grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the current directory, which is not on the path."""
    (tmp_path / "grouped.py").write_text(
        """
__version__ = "1.2"
NUMBER = 3
class Group:
    @staticmethod
    def attention(q, k, v):
        "The first line.\\n\\nMore."
        return "called"

import attn_impls
ANOTHER = attn_impls.Implementation("fast", Group.attention, summary="Fast.")

class Ours(attn_impls.Implementation):
    def __init__(self, fn):
        super().__init__("ours", fn, summary="Of a class of its own.")

OURS = Ours(Group.attention)
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("grouped", None)


def test_reference_from_the_current_directory(grouped: None) -> None:
    found = Registry().resolve("grouped:Group.attention")
    assert found.name == "grouped:Group.attention"
    assert found.summary == "The first line."
    assert found.version_or_unknown() == "1.2"
    assert not found.declared
    assert found(None, None, None, SQUARE) == "called"


def test_what_a_reference_finds_is_found_again_by_its_name(grouped: None) -> None:
    found = Registry().resolve("grouped:ANOTHER")
    assert (found.name, found.summary) == ("grouped:ANOTHER", "Fast.")
    found = Registry().resolve("grouped:OURS")
    assert (found.name, found.summary) == ("grouped:OURS", "Of a class of its own.")


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("nomodule:f", "cannot import 'nomodule:f': ModuleNotFoundError: No module named 'nomodule'"),
        ("grouped:nothing", "cannot import 'grouped:nothing': AttributeError: module 'grouped' has no attribute"),
        ("grouped:", "cannot import 'grouped:': AttributeError: "),
        (":f", "cannot import ':f': ValueError: Empty module name"),
        ("grouped:NUMBER", "'grouped:NUMBER' is a int, not a function of (q, k, v, problem)"),
    ],
)
def test_bad_references(grouped: None, reference: str, sentence: str) -> None:
    with pytest.raises(UnknownImplementation) as refused:
        from_reference(reference)
    assert str(refused.value).startswith(sentence)


def test_adapter_of_a_function_of_a_problem() -> None:
    impl = as_implementation(lambda q, k, v, problem: problem.id, "mine")
    assert impl(None, None, None, SQUARE) == SQUARE.id
    assert impl.capabilities == Capabilities()


@pytest.mark.parametrize("keyword", ["causal", "is_causal"])
def test_adapter_of_a_causal_keyword(keyword: str) -> None:
    namespace: dict[str, Callable[..., object]] = {}
    exec(f"def f(q, k, v, {keyword}=None): return {keyword}", namespace)
    impl = as_implementation(namespace["f"], "mine")
    assert impl(None, None, None, SQUARE) is False
    assert impl(None, None, None, change(SQUARE, mask=CAUSAL)) is True
    assert impl.capabilities == Capabilities()


@pytest.mark.parametrize("keyword", ["scale", "softmax_scale", "sm_scale"])
def test_adapter_of_a_scale_keyword(keyword: str) -> None:
    namespace: dict[str, Callable[..., object]] = {}
    exec(f"def f(q, k, v, *, {keyword}=None): return {keyword}", namespace)
    impl = as_implementation(namespace["f"], "mine")
    assert impl(None, None, None, SQUARE) == 0.125
    assert impl(None, None, None, change(SQUARE, scale=0.3)) == 0.3
    assert impl.capabilities == Capabilities(masks=frozenset({"full"}), scale=True)


def test_adapter_of_a_plain_function_claims_no_causal_mask() -> None:
    impl = as_implementation(lambda q, k, v: q, "mine")
    assert impl.capabilities.masks == {"full"}
    assert not impl.capabilities.scale


def test_declared_capabilities_are_believed() -> None:
    def mine(q: object, k: object, v: object) -> object:
        return q

    mine.capabilities = Capabilities(gqa=True)  # type: ignore[attr-defined]
    impl = as_implementation(mine, "mine")
    assert impl.capabilities is mine.capabilities  # type: ignore[attr-defined]
    assert impl.declared


def test_an_implementation_is_not_wrapped() -> None:
    mine = Implementation("mine", print)
    assert as_implementation(mine, "other") is mine
