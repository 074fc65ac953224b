"""Refuses to build a wheel: the checkout is the installation (pyproject.toml says why)."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableOnly(BuildHookInterface):  # type: ignore[type-arg]
    """hatchling calls it with version 'editable' for `pip install -e .` and with 'standard' for a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            raise ValueError("there is no wheel of this project; install the checkout itself: pip install -e .")
