"""Whether a run is slower than the one before. A library: it imports neither pytest nor torch.

``judge_pairs`` judges runs taken in pairs (:mod:`~pytest_attn.gate.paired` holds the rule), ``judge_confirmed`` what is
left of the suspects after they were measured again; ``compare`` judges two stored runs
(:mod:`~pytest_attn.gate.rule`), the weaker form. Both refuse runs that cannot be compared
(:mod:`~pytest_attn.gate.comparable`) and judge memory, kernels and accuracy exactly (:mod:`~pytest_attn.gate.exact`).
"""

from pytest_attn.gate.comparable import NotComparable as NotComparable
from pytest_attn.gate.compare import compare as compare
from pytest_attn.gate.compare import exit_code as exit_code
from pytest_attn.gate.pairs import Pair as Pair
from pytest_attn.gate.pairs import judge_confirmed as judge_confirmed
from pytest_attn.gate.pairs import judge_pairs as judge_pairs
from pytest_attn.gate.pairs import suspects as suspects
from pytest_attn.gate.settings import BadSettings as BadSettings
from pytest_attn.gate.settings import Settings as Settings
from pytest_attn.gate.settings import read_settings as read_settings
from pytest_attn.gate.shift import common_shift as common_shift
from pytest_attn.gate.thresholds import STORED as STORED
from pytest_attn.gate.thresholds import Thresholds as Thresholds
from pytest_attn.gate.verdict import Outcome as Outcome
from pytest_attn.gate.verdict import Verdict as Verdict
