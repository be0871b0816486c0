"""The suite: tests that judge attention implementations, run by ``pytest -m correctness`` and ``pytest -m perf``.

From an installed wheel, in any folder: ``pytest --pyargs pytest_attn.suite -m correctness --attn-impl NAME``.
"""
