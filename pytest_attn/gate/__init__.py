"""Whether a run is slower than the one before. A library: it imports neither pytest nor torch.

``compare(base, head)`` pairs the cells of two runs (:mod:`~pytest_attn.gate.pairing`), refuses runs that cannot be
compared (:mod:`~pytest_attn.gate.comparable`) and judges each cell by one rule (:mod:`~pytest_attn.gate.rule`).
"""

from pytest_attn.gate.comparable import NotComparable as NotComparable
from pytest_attn.gate.compare import compare as compare
from pytest_attn.gate.compare import exit_code as exit_code
from pytest_attn.gate.shift import common_shift as common_shift
from pytest_attn.gate.thresholds import Thresholds as Thresholds
from pytest_attn.gate.verdict import Outcome as Outcome
from pytest_attn.gate.verdict import Verdict as Verdict
