"""Metamorphic properties: how the results of two calls must relate, whatever they are.

The two sides come from the implementation itself, so that a mistake which oracle and implementation share still shows.
Only the distance that two right results may have is the oracle's: the budget of each side, element by element (see
:mod:`pytest_attn.correctness.budget`; that of ``naive`` as it stands, for what an order of writing adds, it adds to
both), where both sides have the same truth and condition twice the budget of one.

A property takes a case, fits its problem (a property of the full mask makes the mask full), and derives the other side
from the case's own tensors and seed, so that the case alone repeats it.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from attn_impls.implementation import Capabilities, Implementation, Unavailable
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, FULL, Direction, Mask, Problem
from pytest_attn.correctness.budget import element_bound, unravelled
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.oracle import solve
from pytest_attn.correctness.running import run
from pytest_attn.correctness.standard import host_or_device
from pytest_attn.correctness.storage import placed
from pytest_attn.frames import raised_sentence
from pytest_attn.out_of_memory import is_out_of_memory, with_no_room_told

Tensor = torch.Tensor
_LONGEST = 320
_GRADIENTS = ("dq", "dk", "dv")


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """Two results, float64 and of one shape, that may be ``allowed`` apart."""

    left: Tensor
    right: Tensor
    allowed: Tensor


class OutsideCapabilities(Exception):
    """The case needs a call that the implementation does not claim to take."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The implementation as properties see it: a function of a problem and tensors, in float64 out."""

    impl: Implementation

    def __call__(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output ``[batch, heads, q_len, head_dim]``."""
        return self._run(problem, _inputs(problem, q, k, v), Direction.FWD)["out"].double()

    def gradients(self, problem: Problem, x: Tensors) -> Tensor:
        """Return ``dq``, ``dk`` and ``dv`` in one row."""
        return _in_a_row(self._run(problem, x, Direction.BWD))

    def _run(self, problem: Problem, x: Tensors, direction: Direction) -> dict[str, Tensor]:
        why_not = self.impl.capabilities.why_not(problem, direction, x.q.device.type)
        if why_not is not None:
            raise OutsideCapabilities(why_not)
        return run(self.impl, problem, x, direction)

    def gradient_budget(self, problem: Problem, x: Tensors) -> Tensor:
        """Return how far each of the :meth:`gradients` of a right implementation may be from the truth."""
        return _in_a_row(_allowed(problem, x, Direction.BWD, _GRADIENTS))

    def budget(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return how far the output of a right implementation may be from the truth, element by element."""
        return _allowed(problem, _inputs(problem, q, k, v), Direction.FWD, ("out",))["out"]


def _allowed(problem: Problem, x: Tensors, direction: Direction, names: Sequence[str]) -> dict[str, Tensor]:
    plain = run(naive, problem, x, direction)
    judge_on = host_or_device(problem, x.q.device)
    truth = solve(problem, x.to(judge_on), gradients=direction is Direction.BWD)

    def bound(name: str) -> Tensor:
        errors = (plain[name].detach().to(judge_on).double() - truth.exact[name]).nan_to_num(0.0, 0.0, 0.0)
        return element_bound(errors, truth.noise[name]).to(x.q.device)

    return {name: bound(name) for name in names}


def _in_a_row(results: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([results[name].double().flatten() for name in _GRADIENTS])


def _inputs(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensors:
    """Copy the tensors, which may be any views, into the order in memory that the problem states."""
    q, k, v = (placed(tensor, problem.layout) for tensor in (q, k, v))
    return Tensors(q, k, v, q)


Relate = Callable[[Attention, Problem, Tensors, torch.Generator], Relation]


@dataclass(frozen=True, slots=True)
class Property:
    """A relation, the problem it needs (``fit``), why an implementation can never be asked (``never``), and of what."""

    relate: Relate
    fit: Callable[[Problem], Problem]
    never: Callable[[Capabilities], str | None]
    direction: Direction

    @property
    def name(self) -> str:
        """The name of its function."""
        return self.relate.__name__

    @property
    def statement(self) -> str:
        """The sentence that must hold."""
        return (inspect.getdoc(self.relate) or "").partition("\n")[0]


PROPERTIES: dict[str, Property] = {}


def _metamorphic(
    fit: Callable[[Problem], Problem] = lambda problem: problem,
    never: Callable[[Capabilities], str | None] = lambda capabilities: None,
    direction: Direction = Direction.FWD,
) -> Callable[[Relate], Relate]:
    def register(relate: Relate) -> Relate:
        PROPERTIES[relate.__name__] = Property(relate, fit, never, direction)
        return relate

    return register


def _masked(problem: Problem, mask: Mask) -> Problem:
    """Put another mask on a problem, and limit its lengths: long problems are drawn for masks that show little."""
    return replace(problem, mask=mask, q_len=min(problem.q_len, _LONGEST), kv_len=min(problem.kv_len, _LONGEST))


def _needs_masks(*kinds: str) -> Callable[[Capabilities], str | None]:
    def never(capabilities: Capabilities) -> str | None:
        missing = [kind for kind in kinds if kind not in capabilities.masks]
        return f"has no {missing[0]} mask" if missing else None

    return never


@_metamorphic(lambda problem: _masked(problem, FULL), _needs_masks("full"))
def permuted_keys(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """Keys and values in another order give the same output.

    Full mask only: under any other the place of a key says who sees it.
    """
    order = torch.randperm(problem.kv_len, generator=generator).to(x.k.device)
    left = attention(problem, x.q, x.k, x.v)
    right = attention(problem, x.q, x.k[:, :, order], x.v[:, :, order])
    return Relation(left, right, 2 * attention.budget(problem, x.q, x.k, x.v))


def _fit_prefix(problem: Problem) -> Problem:
    mask = problem.mask if problem.mask.kind in ("causal", "causal_top_left") else CAUSAL
    return _masked(replace(problem, kv_len=max(2, problem.kv_len), q_len=max(2, problem.q_len)), mask)


@_metamorphic(_fit_prefix, _needs_masks("causal"))
def blind_to_the_suffix(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """Rows before a cut do not change when the keys and values after it do.

    Causal masks, in both alignments.
    """
    _, diagonal = problem.mask.diagonals(problem.q_len, problem.kv_len)
    assert diagonal is not None
    # Row r sees keys up to r + diagonal: the last row before the cut must exist, and some key must lie after it.
    first = max(1, diagonal + 1)
    cut = first + _below(problem.kv_len - first, generator) if first < problem.kv_len else problem.kv_len
    rows = max(0, min(problem.q_len, cut - diagonal))
    k, v = x.k.clone(), x.v.clone()
    for tensor in (k, v):
        suffix = tensor[:, :, cut:]
        suffix.copy_(4 * torch.randn(suffix.shape, generator=generator))
    left = attention(problem, x.q, x.k, x.v)[:, :, :rows]
    right = attention(problem, x.q, k, v)[:, :, :rows]
    return Relation(left, right, 2 * attention.budget(problem, x.q, x.k, x.v)[:, :, :rows])


@_metamorphic(lambda problem: replace(problem, batch=max(2, problem.batch)))
def independent_batches(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """A batch element alone gives what it gives in a batch whose other elements are NaN.

    Every mask.
    """
    chosen = _below(problem.batch, generator)
    mine = slice(chosen, chosen + 1)
    others = [element for element in range(problem.batch) if element != chosen]
    q, k, v = x.q.clone(), x.k.clone(), x.v.clone()
    for tensor in (q, k, v):
        tensor[others] = math.nan
    one = replace(problem, batch=1)
    alone = (x.q[mine], x.k[mine], x.v[mine])
    return Relation(attention(problem, q, k, v)[mine], attention(one, *alone), 2 * attention.budget(one, *alone))


@_metamorphic()
def independent_heads(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """The query heads of one key head alone give what they give beside other heads that are NaN.

    Every mask.
    """
    group = problem.heads // problem.kv_heads
    chosen = _below(problem.kv_heads, generator)
    mine, queries = slice(chosen, chosen + 1), slice(chosen * group, (chosen + 1) * group)
    q, k, v = (torch.full_like(tensor, math.nan) for tensor in (x.q, x.k, x.v))
    q[:, queries], k[:, mine], v[:, mine] = x.q[:, queries], x.k[:, mine], x.v[:, mine]
    one = replace(problem, heads=group, kv_heads=1)
    alone = (x.q[:, queries], x.k[:, mine], x.v[:, mine])
    together = attention(problem, q, k, v)[:, queries]
    return Relation(together, attention(one, *alone), 2 * attention.budget(one, *alone))


@_metamorphic()
def constant_values(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """Where all values are one vector, that vector comes back: the weights of a row add up to 1.

    Every mask; a row without a visible key gives 0. Where the weights are alike too, the terms of a sum in fp32 round
    the same way, one after the other, and not at random: added one by one they may be off by kv_len roundings (Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2), which the budget has on top.
    """
    v = x.v[:, :, :1].expand_as(x.v)
    out = attention(problem, x.q, x.k, v)
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    row = torch.arange(problem.q_len, device=out.device)
    first = row * 0 if low is None else (row + low).clamp(min=0)
    last = row * 0 + problem.kv_len - 1 if high is None else (row + high).clamp(max=problem.kv_len - 1)
    vector = v[:, :, :1].double().repeat_interleave(problem.heads // problem.kv_heads, dim=1)
    one_by_one = problem.kv_len * torch.finfo(torch.float32).eps / 2 * vector.abs()
    return Relation(out, vector * (first <= last)[:, None], attention.budget(problem, x.q, x.k, v) + one_by_one)


@_metamorphic(lambda problem: replace(problem, softcap=None))
def shifted_logits(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """A vector added to every key shifts a row's logits by one number and changes nothing.

    Every mask, without a softcap, which is not linear. Keys and vector are rounded to eighths, so that their sum is
    exact in every dtype.
    """
    k = _eighths(x.k)
    shape = (problem.batch, problem.kv_heads, 1, problem.head_dim)
    moved = k + _eighths(torch.randn(shape, generator=generator).to(k))
    budget = attention.budget(problem, x.q, k, x.v) + attention.budget(problem, x.q, moved, x.v)
    return Relation(attention(problem, x.q, k, x.v), attention(problem, x.q, moved, x.v), budget)


def _fit_group(problem: Problem) -> Problem:
    return problem if problem.heads > problem.kv_heads else replace(problem, heads=2 * problem.kv_heads)


@_metamorphic(_fit_group, lambda claimed: None if claimed.gqa else "has no grouped-query attention")
def repeated_heads(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """Grouped queries give what plain heads give on keys and values that are repeated for each head of a group.

    Every mask.
    """
    group = problem.heads // problem.kv_heads
    k, v = (tensor.repeat_interleave(group, dim=1) for tensor in (x.k, x.v))
    right = attention(replace(problem, kv_heads=problem.heads), x.q, k, v)
    return Relation(attention(problem, x.q, x.k, x.v), right, 2 * attention.budget(problem, x.q, x.k, x.v))


def _fit_wide_window(problem: Problem) -> Problem:
    return _masked(problem, CAUSAL if problem.mask == CAUSAL else FULL)


@_metamorphic(_fit_wide_window, _needs_masks("full", "window"))
def wide_window(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """A window at least as wide as the sequence is no window: full, or causal where it ends at the diagonal.

    Full and causal (bottom-right).
    """
    wide = max(problem.q_len, problem.kv_len) - 1 + _below(3, generator)
    window = replace(problem, mask=Mask("window", left=wide, right=0 if problem.mask == CAUSAL else wide))
    left, right = attention(problem, x.q, x.k, x.v), attention(window, x.q, x.k, x.v)
    return Relation(left, right, 2 * attention.budget(problem, x.q, x.k, x.v))


@_metamorphic()
def linear_in_values(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """The output for the sum of two values is the sum of the outputs.

    Every mask. Values are rounded to eighths, so that their sum is exact in every dtype.
    """
    a, b = _eighths(x.v), _eighths(torch.randn(x.v.shape, generator=generator).to(x.v))
    budget = sum(attention.budget(problem, x.q, x.k, v) for v in (a, b, a + b))
    assert isinstance(budget, torch.Tensor)
    parts = attention(problem, x.q, x.k, a) + attention(problem, x.q, x.k, b)
    return Relation(attention(problem, x.q, x.k, a + b), parts, budget)


@_metamorphic(never=lambda claimed: None if claimed.backward else "has no backward", direction=Direction.BWD)
def expanded_upstream(attention: Attention, problem: Problem, x: Tensors, generator: torch.Generator) -> Relation:
    """One number, expanded to the upstream gradient, gives the gradients of as many copies of it.

    Every mask. ``out.sum().backward()`` passes such a gradient, all of whose strides are 0. The number is the largest
    of the case's own gradient, whose size the regime chooses, over the root of the number of queries, since equal terms
    add up by their number and not by its root. What is compared is dq, dk and dv, one behind the other.
    """
    terms = max(1, problem.q_len * problem.heads // problem.kv_heads)
    number = x.dout.abs().amax() / math.sqrt(terms) if x.dout.numel() else x.dout.new_ones(())
    q, k, v = (placed(tensor, problem.layout) for tensor in (x.q, x.k, x.v))
    expanded = Tensors(q, k, v, number.expand_as(q))
    dense = replace(expanded, dout=placed(expanded.dout, problem.layout))
    allowed = 2 * attention.gradient_budget(problem, dense)
    return Relation(attention.gradients(problem, expanded), attention.gradients(problem, dense), allowed)


def _eighths(tensor: Tensor) -> Tensor:
    """Round to multiples of 1/8 from -4 to 4: six bits and a sign, so that two of them add up in bf16's eight."""
    return (8 * tensor.float()).round().clamp(-32, 32).div(8).to(tensor.dtype)


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


@dataclass(frozen=True, slots=True)
class PropertyVerdict:
    """What was found for one property on one case: ``ratio`` is distance over what is allowed, <= 1 passes."""

    impl: str
    name: str
    statement: str
    case: Case
    device: str
    ratio: float = math.inf
    where: str = ""
    broken: str | None = None
    raised: BaseException | None = field(default=None, compare=False)

    @property
    def ok(self) -> bool:
        """Whether both sides agree."""
        return self.broken is None and self.ratio <= 1

    def explain(self) -> str:
        """Say in a few lines what does not hold, where, and by how much."""
        direction = PROPERTIES[self.name].direction.value
        found = self.broken or f"{'ok' if self.ok else 'WRONG'} distance/budget {self.ratio:.3g} {self.where}"
        return (
            f"{self.impl} does not keep {self.name} on {self.case.problem.id}\n"
            f"  {self.statement}\n  regime {self.case.regime}, seed {self.case.seed}, {direction}, on {self.device}\n"
            f"  {found}"
        )


@with_no_room_told
def judge_property(impl: Implementation, name: str, case: Case, device: torch.device) -> PropertyVerdict | None:
    """Check the property ``name`` of ``impl`` on ``case``, whose problem is fitted to it.

    Returns ``None`` when the property needs a call outside the capabilities. What the implementation raises is a
    verdict; :class:`attn_impls.Unavailable` and :class:`.NoRoom` pass through.
    """
    rule = PROPERTIES[name]
    case = replace(case, problem=rule.fit(case.problem))
    try:
        with warnings.catch_warnings():
            # A warning is not a wrong result, even where the user turns warnings into errors for tests of their own.
            warnings.simplefilter("ignore")
            tensors = make_tensors(case, device)
            relation = rule.relate(Attention(impl), case.problem, tensors, torch.Generator().manual_seed(case.seed))
    except OutsideCapabilities:
        return None
    except Unavailable:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        broken = raised_sentence(error)
        return PropertyVerdict(impl.name, name, rule.statement, case, str(device), broken=broken, raised=error)
    ratio, where = _worst(relation)
    return PropertyVerdict(impl.name, name, rule.statement, case, str(device), ratio, where)


def _worst(relation: Relation) -> tuple[float, str]:
    apart = (relation.left - relation.right).abs()
    if apart.numel() == 0:
        return 0.0, ""
    ratio = torch.where(apart.isfinite(), apart / relation.allowed, math.inf)
    worst = ratio.argmax()
    # One copy from the device for all of them; a float64 holds every index.
    there = [x.take(worst) for x in (ratio, relation.left, relation.right, apart, relation.allowed)]
    index, found, one, other, distance, allowed = torch.stack([worst.double(), *there]).tolist()
    place = ", ".join(str(i) for i in unravelled(int(index), ratio.shape))
    return found, f"at [{place}]: {one:.6g} and {other:.6g}, {distance:.3g} apart of {allowed:.3g}"
