"""Hypothesis profiles of the suite: ``dev``, ``ci`` and ``nightly``, chosen by ``--hypothesis-profile``."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

# A compiled backend may take seconds for its first example, and drawing shapes is cheap next to running them.
_CALM = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)

_COMMON: dict[str, Any] = {
    # Not the loaded profile: on a CI machine that is hypothesis's own "ci", without a database.
    "parent": settings.get_profile("default"),
    "deadline": None,
    # One failure, shrunk, is what a reader can use; our own command repeats it, so hypothesis's blob is noise.
    "report_multiple_bugs": False,
    "print_blob": False,
    "suppress_health_check": _CALM,
}

settings.register_profile("dev", max_examples=25, derandomize=False, **_COMMON)
settings.register_profile("ci", max_examples=100, derandomize=True, database=None, **_COMMON)
settings.register_profile("nightly", max_examples=2000, derandomize=False, **_COMMON)

PROFILES = ("dev", "ci", "nightly")


def suite_settings() -> settings:
    """Return the settings for the suite's tests: the loaded profile if it is one of ours, else ``dev``.

    The profile is not loaded for the whole process, because the plugin runs beside other people's tests.
    """
    current = settings.get_current_profile_name()
    return settings.get_profile(current if current in PROFILES else "dev")
