"""Options that several commands share."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bvdm_data.synth.scene import Method

Command = Callable[..., None]
FOLDER = click.Path(path_type=Path)


class Parsed(click.ParamType[Any]):
    """A value of several parts; ``looks`` is an example for the message about what is none."""

    def __init__(self, name: str, parse: Callable[[str], Any], looks: str) -> None:
        """Take the function that parses a text, or raises a ValueError."""
        self.name, self._parse, self._looks = name, parse, looks

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the form as it is typed, which click writes in capitals."""
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value, which a default may be already."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"must look like {self._looks}, got {value!r}")


def _parse_whole(text: str) -> int:
    if not text.isdigit():
        raise ValueError("no digits")
    return int(text)


def _parse_size(text: str) -> tuple[int, int]:
    height, width = map(_parse_whole, text.split("x"))
    return height, width


def _parse_nuclei(text: str) -> int | tuple[int, int]:
    low, dash, high = text.partition("-")
    return (_parse_whole(low), _parse_whole(high)) if dash else _parse_whole(low)


def _parse_outline(text: str) -> str | float | tuple[float, ...]:
    """Return share and slope as numbers, else the name."""
    try:
        numbers = tuple(map(float, text.split(",")))
        return numbers if len(numbers) > 1 else numbers[0]
    except ValueError:
        return text


def _parse_factors(text: str) -> tuple[float, ...]:
    factors = tuple(map(float, text.split(",")))
    if not all(0 < factor < math.inf for factor in factors):
        raise ValueError("out of range")
    return factors


def _parse_variation(text: str) -> float | dict[str, float]:
    """Return a number, or one for each part that is named."""
    if "=" not in text:
        return float(text)
    pairs = [part.partition("=") for part in text.split(",")]
    return {name.strip(): float(number) for name, _, number in pairs}


def _parse_annotations(text: str) -> str | tuple[str, ...]:
    return text if text == "all" else () if text == "none" else tuple(text.split(","))


SIZE = Parsed("HEIGHTxWIDTH", _parse_size, "256x256 (height x width in pixels)")
FACTORS = Parsed("FACTOR,...", _parse_factors, "0.5,1,2 (numbers above 0)")


def option(*names: str, shown: bool = True, **attributes: Any) -> Callable[[Command], Command]:
    """Return an option whose help shows its default, where it has one."""
    if not attributes.get("is_flag"):
        attributes["show_default"] = shown and "default" in attributes
    return click.option(*names, **attributes)


MODEL = option("--model", default="hela", help="Name of a model, or path of its file.")
SEED = option("--seed", default=0, help="Seed of all random numbers.")
JSON = option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
QUIET = option("--quiet", is_flag=True, help="No progress bars.")
VARIATION = option(
    "--variation",
    type=Parsed("FLOAT|PART=FLOAT,...", _parse_variation, "0.5 or haze=0.5,debris=0"),
    help="How far clips, or some parts of them, may leave the fitted video, from 0 to 1. "
    "[default: 1 with fast, else 0]",
)
OUTLINE = option(
    "--outline",
    default="video",
    type=Parsed("even|video|SHARE[,SLOPE]", _parse_outline, "even, video, 0.4 or 0.4,-0.1"),
    help="Where outlines lie: even (one share of the core's light at every brightness), video (as "
    "annotated there), a share from 0 to 1, or a share and its slope by light.",
)
DEATH_RATE = option(
    "--death-rate",
    type=float,
    help="Chance that a nucleus in interphase dies, a frame. [default: as in the video]",
)


def _combine(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return what adds options to a command."""
    return lambda command: functools.reduce(lambda made, one: one(made), options[::-1], command)


def add_size_options(frames: int, size: str) -> Callable[[Command], Command]:
    """Return what adds ``--frames`` and ``--size`` with these defaults to a command."""
    return _combine(
        option("--frames", default=frames, help="Of a clip or video."),
        option("--size", default=size, type=SIZE, help="Of a frame, pixels."),
    )


add_time_options = _combine(
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
add_method_options = _combine(
    option(
        "--method",
        type=click.Choice(["fast", "paper", "procedural"]),
        default="fast",
        help="How textures are rendered.",
    ),
    option("--first-steps", type=int, help="Of paper: diffusion steps at frame 0. [default: 200]"),
    option(
        "--later-steps", type=int, help="Of paper: diffusion steps at later frames. [default: 10]"
    ),
)
# What every command that makes clips has.
add_clip_options = _combine(
    MODEL,
    option(
        "--nuclei",
        type=Parsed("COUNT|LOW-HIGH", _parse_nuclei, "20 or 10-30"),
        help="In the first frame. [default: as in the video, times what --variation makes of it]",
    ),
    option(
        "--at-least", default=0, help="Nuclei in view in the first frame of every clip, at least."
    ),
    VARIATION,
    OUTLINE,
    add_method_options,
    SEED,
)
# What a command that makes clips as a data set has, too.
add_key_options = _combine(
    option(
        "--annotations",
        default="masks,tracks",
        type=Parsed("NAME,...", _parse_annotations, "masks,tracks"),
        help="Beside video: masks, tracks, flow, stages, boxes, centroids; or all, or none.",
    ),
    option("--video/--no-video", default=True, help="Whether clips have pictures."),
    option(
        "--max-cells", type=int, help="Rows of the tables. [default: as many as clips can need]"
    ),
    option("--pool", is_flag=True, help="Show nuclei of a cell bank in many clips."),
)


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
