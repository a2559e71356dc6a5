"""Options that several commands share, and the kinds of values they take."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bvdm_data.synth.generator import Method

MODEL = click.option(
    "--model", default="hela", show_default=True, help="Name of a model, or path of its file."
)
"""Which model."""

SEED = click.option("--seed", default=0, show_default=True, help="Seed of all random numbers.")
"""Which random numbers."""

QUIET = click.option("--quiet", is_flag=True, help="No progress bars.")
"""Whether long work shows how far it is."""

MOST_NUCLEI = 10_000
"""Rows of a table that nobody sees; enough for any picture."""


class Size(click.ParamType[Any]):
    """A picture size such as 700x1100."""

    name = "HEIGHTxWIDTH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return height and width in pixels."""
        if isinstance(value, tuple):
            return value
        height, cross, width = str(value).partition("x")
        if not (cross and height.isdigit() and width.isdigit()):
            self.fail(f"must look like 256x256 (height x width in pixels), got {value!r}")
        return int(height), int(width)


class Nuclei(click.ParamType[Any]):
    """A number of nuclei such as 20, or a range such as 10-30."""

    name = "N|LOW-HIGH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        """Return a number, or the lowest and the highest."""
        low, dash, high = str(value).partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            self.fail(f"must look like 20 or 10-30, got {value!r}")
        return (int(low), int(high)) if dash else int(low)


class Factors(click.ParamType[Any]):
    """Factors such as 0.5,1,2."""

    name = "FACTOR,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the factors, all above 0."""
        if isinstance(value, tuple):
            return value
        try:
            factors = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            factors = ()
        if not factors or not all(0 < factor < math.inf for factor in factors):
            self.fail(f"must look like 0.5,1,2 (numbers above 0), got {value!r}")
        return factors


VARIATION = click.option(
    "--variation", type=float,
    help="How far clips may leave the fitted video, from 0 to 1. [default: 1 with fast, else 0]",
)  # fmt: skip
"""How much wider than the fitted video."""


def method_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--method``, ``--first-steps`` and ``--later-steps`` to a command."""
    name = click.option(
        "--method",
        type=click.Choice(["fast", "paper", "procedural"]),
        default="fast",
        show_default=True,
        help="How nuclei are painted.",
    )
    first = click.option(
        "--first-steps",
        type=int,
        help="Of paper: steps at frame 0. [default: 200]",
    )
    later = click.option(
        "--later-steps", type=int, help="Of paper: steps at later frames. [default: 10]"
    )
    return name(first(later(command)))


def method_settings(method: str, first_steps: int | None, later_steps: int | None) -> "Method":
    """Return the settings that these options ask for; refuse the paper's steps elsewhere."""
    from bvdm_data.datasets.methods import METHODS
    from bvdm_data.synth.texture import PaperSettings

    given = {"first_steps": first_steps, "later_steps": later_steps}
    steps = {name: number for name, number in given.items() if number is not None}
    if method == "paper":
        return PaperSettings(**steps)
    for name in steps:
        option = f"--{name.replace('_', '-')}"
        raise click.UsageError(f"{option} is for --method paper, got --method {method}")
    return METHODS[method]


def method_words(settings: "Method") -> str:
    """Return what a line of output says of a method: its steps, or that there are none."""
    from bvdm_data.synth.fast import FastSettings
    from bvdm_data.synth.texture import PaperSettings

    if isinstance(settings, PaperSettings):
        return f"T_f=0 = {settings.first_steps}, T_f>0 = {settings.later_steps}"
    if not isinstance(settings, FastSettings):
        return "procedural"
    return f"fast, {settings.steps} step{'s' * (settings.steps > 1)}"
