"""Hardware counters of the kernels of one call, read by Nsight Compute: what ``attn profile`` is made of.

:mod:`~pytest_attn.counters.rows` says what is counted, :mod:`~pytest_attn.counters.ncu` runs Nsight Compute around
:mod:`~pytest_attn.counters.child`, :mod:`~pytest_attn.counters.document` holds what came of it.
"""
