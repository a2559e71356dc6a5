"""Described: what a data set says of itself, on one line and in a notebook."""

import inspect
from collections.abc import Mapping, Sized
from dataclasses import fields, is_dataclass
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import torch

from bvdm_data.clip import take_part
from bvdm_data.datasets.transforms import name_transform
from bvdm_data.files import cut_words
from bvdm_data.weights import known_models

LONGEST = 80  # characters of one argument
MOST_ITEMS = 12  # items of a list that are named; of a longer one, their number is
# Pixels of a clip that is made for a notebook without being asked for (our choice: seconds).
MOST_PIXELS = 8 * 512 * 512
SHOWN_FRAMES, QUALITY = 4, 80


class Described:
    """Shows the call that makes it: the arguments of ``_ALWAYS``, and those that are no defaults.

    Neither text nor picture ever raises, be the data set half made or its files gone.
    """

    _ALWAYS: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        """Return the call that would make this."""
        name = type(self).__name__
        try:
            given = self._list_arguments()
            parts = [
                f"{key}={_print(given[key])}"
                for key, one in inspect.signature(type(self)).parameters.items()
                if key in given and (key in self._ALWAYS or _differs(given[key], one.default))
            ]
        except Exception:
            return f"<{name}, not ready>"
        return f"{name}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Show the call and the first clip, or what stands in its way."""
        return f"<code>{escape(repr(self))}</code><br>{self._draw_first_clip()}"

    def _list_arguments(self) -> dict[str, Any]:
        """Return the arguments as a user would give them, by name."""
        names = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        given = {name: getattr(self, name) for name in names if name != "max_cells"}  # filled in
        if given.get("shard") == (0, 1):
            del given["shard"]
        return given

    def _is_quick(self) -> bool:
        """Return whether a clip takes but seconds."""
        shape: Any = (getattr(self, "frames", 0), *getattr(self, "size", (0, 0)))
        return bool(0 < shape[0] * shape[1] * shape[2] <= MOST_PIXELS)

    def _draw_first_clip(self) -> str:
        """Return an image, or what stands in its way."""
        if not hasattr(self, "clip"):
            return ""
        try:
            from bvdm_data.viz.pictures import choose_frames, encode_image, render_contact_sheet

            if not self._is_quick():
                return "<code>bvdm_data.show(videos.clip(0))</code> shows the first clip."
            clip = self.clip(0)
            take_part(clip, "video")
            frames = choose_frames("clip", len(clip["video"]), None, most=SHOWN_FRAMES)
            sheet = render_contact_sheet({"clip 0": clip}, frames=frames)
            content = encode_image(sheet, "WEBP", quality=QUALITY)
        except Exception as error:
            return f"No picture: {escape(cut_words(str(error), 4 * LONGEST))}"
        return f'<img style="max-width:100%" src="{content}">'


def _differs(value: object, default: object) -> bool:
    """Return whether an argument is worth a word."""
    if callable(value):
        return value is not default
    return bool((str(value) if isinstance(value, torch.device) else value) != default)


def _print(value: object) -> str:
    """Return a short text, without a look into large or foreign things."""
    if isinstance(value, Described):
        return repr(value)
    if isinstance(value, (bool, int, float)) or value is None:
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, Path) and value in known_models().values():
        return repr(value.stem)
    if isinstance(value, (str, Path, torch.device)):
        return repr(str(value))
    if isinstance(value, Mapping) and len(value) <= MOST_ITEMS:
        return "{" + ", ".join(f"{k!r}: {_print(one)}" for k, one in value.items()) + "}"
    if isinstance(value, tuple) and len(value) <= MOST_ITEMS:
        return f"({', '.join(map(_print, value))}{',' * (len(value) == 1)})"
    if is_dataclass(value) and not isinstance(value, type):
        changed = {
            one.name: getattr(value, one.name)
            for one in fields(value)
            if _differs(getattr(value, one.name), one.default)
        }
        texts = ", ".join(f"{name}={_print(one)}" for name, one in changed.items())
        return f"{type(value).__name__}({texts})"
    if callable(value):
        return cut_words(name_transform(value), LONGEST)
    count = f" of {len(value)}" if isinstance(value, Sized) else ""
    return f"<{type(value).__name__}{count}>"
