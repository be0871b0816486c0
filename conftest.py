"""Loads the plugin when the tests run from a checkout that is not installed."""

from importlib import metadata

if not any(point.value == "pytest_attn.plugin" for point in metadata.entry_points(group="pytest11")):
    pytest_plugins = ["pytest_attn.plugin"]
