"""Methods: the ways of painting nuclei that have a name, and what may be asked of them."""

from collections.abc import Mapping

from bvdm_data.datasets.arguments import check_share
from bvdm_data.synth.fast import FastSettings
from bvdm_data.synth.generator import NOT_FITTED, Generator, Method
from bvdm_data.synth.pool import PoolSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.texture import PaperSettings

FAST_VARIATION = 1.0
"""The variation of the method ``"fast"`` where nothing else is said: what served a held-out video
best, see docs/evaluation.md."""

METHODS: Mapping[str, Method] = {
    "fast": FastSettings(),
    "paper": PaperSettings(),
    "procedural": ProceduralSettings(),
}
"""Ways of painting nuclei that have a name."""


def check_method(method: str | Method) -> Method:
    """Return the settings of a method.

    Args:
        method: A name out of ``METHODS``, or settings.

    Returns:
        The settings.

    Raises:
        TypeError: If method is neither.
        ValueError: If there is no method of that name.
    """
    if isinstance(method, Method):
        return method
    settings = "FastSettings, PaperSettings or ProceduralSettings"
    if not isinstance(method, str):
        raise TypeError(f"method must be a name, {settings}, got {method!r}")
    if method not in METHODS:
        names = ", ".join(repr(name) for name in METHODS)
        raise ValueError(f"method must be one of {names}, or {settings}, got {method!r}")
    return METHODS[method]


def check_variation(variation: float | None, method: Method) -> float:
    """Return how far clips may leave the fitted video.

    Args:
        variation: From 0 to 1; None: what is usual for the method.
        method: Settings of the method.

    Returns:
        From 0 to 1.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is below 0 or above 1.
    """
    if variation is None:
        return FAST_VARIATION if isinstance(method, FastSettings) else 0.0
    return check_share("variation", variation)


def check_pool(pool: PoolSettings | bool | None, method: Method) -> PoolSettings | None:
    """Return how nuclei are shared by clips.

    Args:
        pool: Settings; True: the usual ones; None or False: not at all.
        method: Settings of the method.

    Returns:
        Settings, or None.

    Raises:
        TypeError: If pool is none of these.
        ValueError: If the method cannot share nuclei.
    """
    if pool is None or pool is False:
        return None
    if not isinstance(pool, PoolSettings) and pool is not True:
        raise TypeError(f"pool must be True, None or PoolSettings, got {pool!r}")
    if not (isinstance(method, FastSettings) and method.families):
        raise ValueError(
            "pool must be None unless the method is 'fast' with families, got "
            f"{type(method).__name__}; leave pool out, or give method='fast'"
        )
    return PoolSettings() if pool is True else pool


def check_fitted(method: Method, generator: Generator) -> None:
    """Refuse a method whose networks the model does not have.

    Args:
        method: Settings of the method.
        generator: The fitted models.

    Raises:
        ValueError: If it is the paper's and the model was fitted without it.
    """
    if isinstance(method, PaperSettings) and generator.unet is None:
        raise ValueError(NOT_FITTED)
