"""Each implementation in a process of its own, so that a crash, a hang or a lost device ends that process and no more.

A library; it imports no pytest. :class:`Workers` is the way in.
"""

from pytest_attn.isolation.worker import Died as Died
from pytest_attn.isolation.worker import Ended as Ended
from pytest_attn.isolation.worker import RemoteError as RemoteError
from pytest_attn.isolation.worker import TimedOut as TimedOut
from pytest_attn.isolation.worker import Worker as Worker
from pytest_attn.isolation.workers import Workers as Workers
