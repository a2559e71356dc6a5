"""What a model file holds: the rule of every entry, and the model that the entries make."""

import math
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bvdm_data.clip import LARGEST_COUNT, PHASES
from bvdm_data.synth.camera import CameraModel
from bvdm_data.synth.cell_cycle import CellCycleModel
from bvdm_data.synth.contours import CONTOUR_POINTS, ShapeModel
from bvdm_data.synth.denoiser import Denoiser, DenoiserConfig, Student, StudentConfig
from bvdm_data.synth.model import Model, TextureModel
from bvdm_data.synth.motion import MotionModel, SpeedModel
from bvdm_data.synth.networks import FlowNet, UNet, UNetSettings
from bvdm_data.validate import Rule

_PARTS = {
    "shapes": ShapeModel,
    "lives": CellCycleModel,
    "motion": MotionModel,
    "camera": CameraModel,
    "texture": TextureModel,
}
_NETWORKS = ("unet", "flownet", "painter", "distilled")
_SETTINGS = {"painter": DenoiserConfig, "distilled": StudentConfig, "unet": UNetSettings}
_DEEPEST = 8  # how deep a card may be nested

# Names of fields in a file, where they differ: files of all versions stay readable.
_FILE_KEYS = {
    "autocorrelation": "memory",
    "innovation": "fresh",
    "area_jitter": "wobble",
    "roughness": "ragged",
    "elongation": "length",
    "brightness_autocorrelation": "brightness_memory",
    "brightness_sister_correlation": "brightness_shared",
    "mother_area": "body",
    "adult_area": "grown",
    "division_asymmetry": "birth_split",
    "division_asymmetry_robust": "split",
    "pro_metaphase_frames": "mitoses",
    "ana_telophase_frames": "births",
    "rotation": "turn",
    "speed": "pace",
    "speed_by_age": "pace_of_age",
    "division_offset": "shift",
    "stage_drift": "drift",
    "sister_distance": "sisters",
    "neighbour_spacing": "closest",
}


class _Table:
    """Rule of an array of float64.

    In the shape a letter is any length from 1 on, a capital one from 2 on; tables of one part that
    share a letter have one length there. Rules are one for all values, or one for each place of
    the last axis.
    """

    def __init__(
        self, shape: str, *columns: Rule, rising: bool = False, unit: bool = False
    ) -> None:
        """Take shape and rules; the squares of a unit kernel add up to 1."""
        self.shape, self.columns = shape.split(), columns
        self.rising, self.unit = rising, unit

    def check(self, name: str, value: Tensor, lengths: dict[str, int]) -> npt.NDArray[np.float64]:
        """Refuse another type, shape or value; ``lengths`` are those of the letters so far."""
        for letter, length in zip(self.shape, value.shape, strict=False):
            if letter.isalpha() and length >= 1 + letter.isupper():
                lengths.setdefault(letter, length)
        _check_kind(name, value, "float64", [str(lengths.get(one, one)) for one in self.shape])
        array: npt.NDArray[np.float64] = value.numpy()
        columns = np.moveaxis(array, -1, 0) if len(self.columns) > 1 else [array]
        for column, rule in zip(columns, self.columns, strict=True):
            for extreme in (column.min(), column.max()):
                rule.check(name, float(extreme))
        rounding = 1e-9 * np.abs(array).max()
        if self.rising and (falls := np.diff(array) < -rounding).any():
            before, after = array[falls.argmax() :][:2]
            raise ValueError(f"{name} must never fall, got {after:g} after {before:g}")
        if self.unit and not math.isclose(total := float((array**2).sum()), 1, rel_tol=1e-6):
            raise ValueError(f"{name} must have squares that add up to 1, got {total:g}")
        return array


def _check_kind(name: str, found: Tensor, kind: str, shape: list[str]) -> None:
    now, sides = str(found.dtype).removeprefix("torch."), [str(side) for side in found.shape]
    if (now, sides) != (kind, shape):
        raise ValueError(
            f"{name} must be {kind} of shape [{', '.join(shape)}], got {now} of "
            f"[{', '.join(sides)[:80]}]"
        )


_ANY, _POSITIVE, _NOT_NEGATIVE = Rule(float), Rule(float, above=0), Rule(float, least=0)
_SHARE, _LOG = Rule(float, least=0, most=1), Rule(float, least=-20, most=20)
_LOG_SPREAD, _LENGTH = Rule(float, least=0, most=20), Rule(float, least=0, most=10_000)
_GREY, _GREY_SPREAD = Rule(float, least=-10, most=10), Rule(float, least=0, most=1)
_STAGES, _FRAMES = len(PHASES), Rule(float, least=0, most=1000)
_AREAS = _Table("Q", Rule(float, above=0, most=1e6), rising=True)
_AREA_RATIO, _AREA_SPREAD = Rule(float, above=0, most=100), Rule(float, least=0, most=3)

# What the fields of a model's parts must be.
_SCHEMA: Mapping[str, Mapping[str, Rule | _Table]] = {
    "shapes": {
        "mean": _Table(f"{_STAGES} {CONTOUR_POINTS}", Rule(float, above=0, most=200)),
        "modes": _Table(f"{_STAGES} M {CONTOUR_POINTS}", Rule(float, least=-200, most=200)),
        "counts": _Table(f"{_STAGES}", _NOT_NEGATIVE),
        "autocorrelation": _Table("M", _SHARE),
        "innovation": _Table("M", _SHARE),
        "area_jitter": _AREA_SPREAD,
        "roughness": _Table("2", _POSITIVE, _LOG_SPREAD),
        "elongation": _Table("Q", _ANY, rising=True),
        "label_shift": Rule(float, least=-20, most=20),
    },
    "lives": {
        "durations": _Table(f"{_STAGES} d", _SHARE),
        "cycle": _Table("2", Rule(float, least=-20, most=10), Rule(float, above=0, most=20)),
        "brightness": _Table("B", Rule(float, above=0, most=10), rising=True),
        "brightness_autocorrelation": _SHARE,
        "brightness_sister_correlation": _SHARE,
        "stage_brightness": _Table(f"{_STAGES} 2", _LOG, _LOG_SPREAD),
        "sister_spread": _LOG_SPREAD,
        "mother_area": _AREAS,
        "area_of_age": _Table("a", _AREA_RATIO),
        "area_of_stage": _Table(f"{_STAGES}", _AREA_RATIO),
        "area_at_birth": _Table(f"{_STAGES}", _AREA_RATIO),
        "division_asymmetry": _SHARE,
        "division_asymmetry_robust": _SHARE,
        "stage_spread": _Table(f"{_STAGES}", _AREA_SPREAD),
        "adult_area": _AREAS,
        "area_in_interphase": _Table("i", _AREA_RATIO),
        "size": _Table("2", _AREA_SPREAD, _SHARE),
        "pro_metaphase_frames": _Table("m 3", _FRAMES),
        "ana_telophase_frames": _Table("n 2", _FRAMES),
        "minutes": Rule(float, least=1e-3, most=1e6),
        "death_rate": _SHARE,
        "mitosis_correlation": Rule(float, least=-1, most=1),
    },
    "motion": {
        "step": _Table("2", _LENGTH, _POSITIVE),
        "rotation": Rule(float, least=0, most=math.pi),
        "separation": _Table("2", _LOG, _LOG_SPREAD),
        "density": _Table("f", Rule(float, least=0, most=0.05)),
        "speed": _Table("5", _LENGTH, _LOG_SPREAD, _SHARE, _NOT_NEGATIVE, _POSITIVE),
        "speed_by_age": _Table("a", _NOT_NEGATIVE),
        "division_offset": _LENGTH,
        "longest_step": replace(_LENGTH, or_none=True),
        "stage_drift": _Table("d 2", Rule(float, least=-10_000, most=10_000)),
        "sister_distance": _Table("b 2", _LOG, _LOG_SPREAD),
        "neighbour_spacing": _Table("Q", _POSITIVE, rising=True),
    },
    "camera": {
        "level": _GREY,
        "level_spread": _GREY_SPREAD,
        "field_spread": _GREY_SPREAD,
        "field_width": Rule(float, above=0, most=10_000),
        "noise": _GREY_SPREAD,
        "streak": _Table("k", _GREY, unit=True),
        "halo": Rule(float, least=0, most=100),
        "offset": Rule(int, least=0, most=LARGEST_COUNT),
        "full": Rule(int, least=0, most=LARGEST_COUNT),
    },
    "texture": {"memory": _SHARE, "fresh": _SHARE},
}
# Fields that files leave out where they have these values, as older files do.
_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "shapes": {"label_shift": 0.0},
    "lives": {"death_rate": 0.0, "mitosis_correlation": 0.0},
    "painter": {"pooling": 1},
    "distilled": {"pooling": 1},
}


def split_model(generator: Model) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a model's file, and the JSON values of its header."""
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {"card": dict(generator.card)}
    for name in _SETTINGS:
        network = getattr(generator, name)
        header[name] = network and _leave_out(name, _to_file_keys(network.settings))
    for name in _SCHEMA:
        part = _to_file_keys(getattr(generator, name))
        arrays = {key: value for key, value in part.items() if isinstance(value, np.ndarray)}
        for key, value in arrays.items():
            tensors[f"{name}.{key}"] = torch.from_numpy(np.ascontiguousarray(value))
        header[name] = _leave_out(name, {k: v for k, v in part.items() if k not in arrays})
    for name in _NETWORKS:
        network = getattr(generator, name)
        for key, value in network.state_dict().items() if network is not None else ():
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous()
    return tensors, header


def _leave_out(name: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a part of the header without those that files leave out."""
    usual = _DEFAULTS.get(name, {})
    return {k: v for k, v in part.items() if k not in usual or v != usual[k]}


def _to_file_keys(part: Any) -> dict[str, Any]:
    values = {_FILE_KEYS.get(key, key): value for key, value in asdict(part).items()}
    return {k: np.array(v) if isinstance(v, SpeedModel) else v for k, v in values.items()}


def build_model(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Model:
    """Check every entry of a file, and return the model; the first fault is a ValueError."""
    _check_keys("", header, ("card", *_SETTINGS, *_SCHEMA))
    for name, part in header.items():
        if not isinstance(part, dict) and (name, part) != ("unet", None):
            raise ValueError(f"{name} must be a JSON object, got {reprlib.repr(part)}")
    _check_card("card", header["card"])
    told = header["card"].get("settings")
    size = told.get("pixel_size") if isinstance(told, dict) else None
    _check_number("card.settings.pixel_size", size, Rule(float, above=0, or_none=True))
    parts: dict[str, Any] = {
        name: kind(**_read_part(name, tensors, header[name])) for name, kind in _PARTS.items()
    }
    settings = {
        name: _read_settings(name, header[name]) for name in _SETTINGS if header[name] is not None
    }
    # On meta, so that no starting weights are drawn from the global random state.
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "painter": Denoiser(settings["painter"]),
            "distilled": Student(settings["distilled"]),
        }
        if "unet" in settings:
            networks |= {"unet": UNet(settings["unet"]), "flownet": FlowNet()}
    for key in tensors:
        if key.partition(".")[0] not in (*_SCHEMA, *networks):
            raise ValueError(f"{key[:80]} is unknown")
    for name, network in networks.items():
        _load_weights(name, network, tensors)
    return Model(**parts, **networks, card=header["card"])  # type: ignore[arg-type]


def _check_keys(part: str, found: Collection[str], wanted: Collection[str]) -> None:
    for key in [key for key in wanted if key not in found]:
        raise ValueError(f"{part}{key} is missing")
    for key in [key for key in found if key not in wanted]:
        raise ValueError(f"{part}{key[:80]} is unknown")


def _check_card(name: str, value: object, depth: int = 0) -> None:
    """Refuse JSON that is nested too deeply, and numbers that are not finite."""
    if isinstance(value, float):
        _ANY.check(name, value)
    if isinstance(value, dict | list):
        if depth == _DEEPEST:
            raise ValueError(f"{name} must be nested at most {depth} deep")
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_card(f"{name}.{str(key)[:40]}", inner, depth + 1)


def _check_number(name: str, value: object, rule: Rule) -> None:
    try:
        rule.check(name, value)
    except TypeError as error:
        raise ValueError(f"{error}") from error


def _read_settings(name: str, given: Mapping[str, Any]) -> Any:
    """Return the settings of a network."""
    keys = {f.name: _FILE_KEYS.get(f.name, f.name) for f in fields(_SETTINGS[name])}
    given = {**_DEFAULTS.get(name, {}), **given}
    given.pop("narrow", None)  # as older files have
    _check_keys(f"{name}.", given, keys.values())
    values = {field: given[key] for field, key in keys.items()}
    if not isinstance(values["channels"], list | tuple):
        raise ValueError(f"{name}.channels must be a list, got {reprlib.repr(values['channels'])}")
    values["channels"] = tuple(values["channels"])
    try:
        return _SETTINGS[name](**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}.{error}") from error


def _read_part(
    name: str, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of a part of a model."""
    rules = {_FILE_KEYS.get(field, field): rule for field, rule in _SCHEMA[name].items()}
    tables = {key for key, rule in rules.items() if isinstance(rule, _Table)}
    arrays, numbers = _select(tensors, name), {**_DEFAULTS.get(name, {}), **numbers}
    _check_keys(f"{name}.", arrays, tables)
    _check_keys(f"{name}.", numbers, rules.keys() - tables)
    values: list[Any] = []
    lengths: dict[str, int] = {}
    for key, rule in rules.items():
        if isinstance(rule, _Table):
            values.append(rule.check(f"{name}.{key}", arrays[key], lengths))
        else:
            _check_number(f"{name}.{key}", numbers[key], rule)
            values.append(None if numbers[key] is None else rule.kind(numbers[key]))
    part = dict(zip(_SCHEMA[name], values, strict=True))
    if name == "motion":
        speed = part["speed"] = SpeedModel(*part["speed"].tolist())
        if part["longest_step"] is None:
            # Not measured; eight scales are the longest step of the HeLa video.
            part["longest_step"] = 8 * speed.scale * speed.mitotic_ratio
    if name == "camera" and part["full"] <= part["offset"]:
        raise ValueError(f"camera.full must be above offset={part['offset']}, got {part['full']}")
    return part


def _select(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _load_weights(name: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own, wanted = _select(tensors, name), network.state_dict()
    _check_keys(f"{name}.", own, wanted)
    for key, weight in wanted.items():
        kind = str(weight.dtype).removeprefix("torch.")
        _check_kind(f"{name}.{key}", own[key], kind, [str(side) for side in weight.shape])
        if not np.isfinite(own[key].numpy()).all():
            raise ValueError(f"{name}.{key} must be finite, got NaN or infinity")
    network.load_state_dict(own, assign=True)
    network.eval().requires_grad_(False)
    if name in _SETTINGS:
        network.to(memory_format=torch.channels_last)
