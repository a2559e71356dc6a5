"""Options that several commands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bvdm_data.synth.scene import Method

Command = Callable[..., None]
FOLDER = click.Path(path_type=Path)


class _Words(click.ParamType[Any]):
    """A type whose help shows its form as it is typed."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the form."""
        return self.name


class Size(_Words):
    """An image size such as 700x1100."""

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


class Nuclei(_Words):
    """A number of nuclei such as 20, or a range such as 10-30."""

    name = "COUNT|LOW-HIGH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        """Return a number, or the lowest and the highest."""
        low, dash, high = str(value).partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            self.fail(f"must look like 20 or 10-30, got {value!r}")
        return (int(low), int(high)) if dash else int(low)


class Outline(_Words):
    """A name such as even, a share such as 0.4, or a share and its slope such as 0.4,-0.1."""

    name = "even|video|SHARE[,SLOPE]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | float | tuple[float, ...]:
        """Return share and slope as numbers, else the name."""
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
            return numbers if len(numbers) > 1 else numbers[0]
        except ValueError:
            return str(value)


class Floats(_Words):
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


class Amounts(_Words):
    """Variation of all parts such as 0.5, or of some such as haze=0.5,debris=0."""

    name = "FLOAT|PART=FLOAT,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | dict[str, float]:
        """Return a number, or one for each part that is named."""
        try:
            if "=" not in str(value):
                return float(value)
            pairs = [part.partition("=") for part in str(value).split(",")]
            return {name.strip(): float(number) for name, _, number in pairs}
        except ValueError:
            self.fail(f"must look like 0.5 or haze=0.5,debris=0, got {value!r}")


def option(*names: str, shown: bool = True, **attributes: Any) -> Callable[[Command], Command]:
    """Return an option whose help shows its default, where it has one."""
    if not attributes.get("is_flag"):
        attributes["show_default"] = shown and "default" in attributes
    return click.option(*names, **attributes)


MODEL = option("--model", default="hela", help="Name of a model, or path of its file.")
SEED = option("--seed", default=0, help="Seed of all random numbers.")
JSON = option("--json", "as_json", is_flag=True, help="Print all of the card as JSON.")
QUIET = option("--quiet", is_flag=True, help="No progress bars.")
NUCLEI = option("--nuclei", type=Nuclei(), help="In the first frame. [default: as in the video]")
AT_LEAST = option(
    "--at-least", default=0, help="Nuclei in view in the first frame of every clip, at least."
)
VARIATION = option(
    "--variation",
    type=Amounts(),
    help="How far clips, or some parts of them, may leave the fitted video, from 0 to 1. "
    "[default: 1 with fast, else 0]",
)
OUTLINE = option(
    "--outline",
    default="video",
    type=Outline(),
    help="What it means: even (one share of the core's light at every brightness), video (as "
    "annotated there), a share from 0 to 1, or a share and its slope by light.",
)
DEATH_RATE = option(
    "--death-rate",
    type=float,
    help="Chance that a nucleus in interphase dies, a frame. [default: as in the video]",
)
_TIME = (
    option(
        "--minutes",
        type=float,
        help="Between two frames, a multiple of the fitted video's. [default: as there]",
    ),
    option("--drift", default=0.0, help="Of the stage, px a frame, in one direction a clip."),
    option(
        "--jumps",
        type=(float, float),
        default=(0.0, 0.0),
        metavar="CHANCE PX",
        help="Of the stage: chance a frame, and the longest.",
    ),
)
POOL = option("--pool", is_flag=True, help="Show nuclei of a cell bank in many clips.")
ANNOTATIONS = option(
    "--annotations",
    default="masks,tracks",
    help="Beside video: masks, tracks, flow, stages, boxes, centroids; or all, or none.",
)
VIDEO = option("--video/--no-video", default=True, help="Whether clips have pictures.")
MAX_CELLS = option(
    "--max-cells", type=int, help="Rows of the tables. [default: as many as clips can need]"
)


def add_size_options(frames: int, size: str) -> Callable[[Command], Command]:
    """Return what adds ``--frames`` and ``--size`` with these defaults to a command."""
    first = option("--frames", default=frames, help="Of a clip or video.")
    second = option("--size", default=size, type=Size(), help="Of a frame, pixels.")
    return lambda command: first(second(command))


def add_time_options(command: Command) -> Command:
    """Add ``--minutes``, ``--drift`` and ``--jumps`` to a command."""
    for one in reversed(_TIME):
        command = one(command)
    return command


def add_method_options(command: Command) -> Command:
    """Add ``--method``, ``--first-steps`` and ``--later-steps`` to a command."""
    name = option(
        "--method",
        type=click.Choice(["fast", "paper", "procedural"]),
        default="fast",
        help="How textures are rendered.",
    )
    first = option(
        "--first-steps", type=int, help="Of paper: diffusion steps at frame 0. [default: 200]"
    )
    later = option(
        "--later-steps", type=int, help="Of paper: diffusion steps at later frames. [default: 10]"
    )
    return name(first(later(command)))


def take_method(options: dict[str, Any]) -> "Method":
    """Take the method out of the options of a command; refuse the paper's steps elsewhere."""
    from bvdm_data.datasets.synthetic import METHODS
    from bvdm_data.synth.paper import PaperSettings

    method = options.pop("method")
    given = {name: options.pop(name) for name in ("first_steps", "later_steps")}
    steps = {name: number for name, number in given.items() if number is not None}
    if method == "paper":
        return PaperSettings(**steps)
    for name in steps:
        raise click.UsageError(
            f"--{name.replace('_', '-')} is for --method paper, got --method {method}"
        )
    return METHODS[method]


def take_annotations(options: dict[str, Any]) -> dict[str, Any]:
    """Take ``--annotations`` and ``--max-cells`` out of the options of a command."""
    names, rows = options.pop("annotations"), options.pop("max_cells")
    every: dict[str, Any] = {"all": "all", "none": ()}
    return {
        "annotations": every.get(names, names.split(",")),
        "max_cells": rows,
    }
