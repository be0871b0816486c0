"""Hypothesis profiles of the suite: ``dev``, ``ci`` and ``nightly``, chosen by ``--hypothesis-profile``.

They are the suite's alone. The plugin runs beside other people's tests, which have profiles of the same names, and
``ci`` is one of hypothesis's own: so no name that exists is given another meaning, and no profile is loaded.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.errors import InvalidArgument

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

PROFILES = {
    "dev": settings(max_examples=25, derandomize=False, **_COMMON),
    "ci": settings(max_examples=100, derandomize=True, database=None, **_COMMON),
    "nightly": settings(max_examples=2000, derandomize=False, **_COMMON),
}


def register() -> None:
    """Let ``--hypothesis-profile`` take our names; a name that is registered already stays what it is."""
    for name, profile in PROFILES.items():
        try:
            settings.get_profile(name)
        except InvalidArgument:
            settings.register_profile(name, profile)


def suite_settings() -> settings:
    """Return the settings for the suite's tests: ours of the loaded profile's name, ``dev`` where there is none."""
    return PROFILES.get(settings.get_current_profile_name(), PROFILES["dev"])
