"""Extras: packages that only the evaluation needs, imported when they are used."""

import importlib
from types import ModuleType


def need(name: str) -> ModuleType:
    """Import a package of the extra ``evaluate``.

    Args:
        name: Name of the module.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: If it is not installed, with the way to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the evaluation needs the package {error.name!r}, which is not installed; "
            'pip install "bvdm-data[evaluate]"'
        ) from error
