"""Make docs/gallery.md and its pictures: run ``python -m benchmarks.gallery [FOLDER]``.

One row a setting; all clips of a row have the same seed. ``make docs`` runs it.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.grid import write_image_grid
from bvdm_data import SyntheticHeLaVideos
from bvdm_data.synth.model import Variation
from bvdm_data.viz.pictures import GAMMA, measure_display_range

DOCS = Path(__file__).parents[1] / "docs"
SIDE, NUCLEI = 192, 9


@dataclass(frozen=True)
class Row:
    """A setting, what it does, and the values that are shown."""

    name: str
    text: str
    values: tuple[Any, ...]
    alone: str = ""  # a part of the variation, without the others
    outlined: bool = False
    seed: int = 2  # one whose draws show the setting


ROWS = (
    Row(
        "variation",
        "How far a clip may leave the fitted video, in all its parts: 0 looks like the video, "
        "1 trains networks that must work on others, too.",
        (0, 0.25, 0.5, 1),
    ),
    Row("nuclei", "Nuclei in view in the first frame.", (3, 6, 12, 20)),
    Row(
        "blur",
        "One part of the variation alone: blur of the whole clip.",
        (0, 0.5, 1),
        "blur",
        seed=4,
    ),
    Row("haze", "Blurred light without a label, out of focus.", (0, 0.5, 1), "haze", seed=25),
    Row("debris", "Bright specks without a label.", (0, 0.5, 1), "debris", seed=57),
    Row(
        "method",
        "`fast` draws textures with one step of a network, `paper` as published, `procedural` "
        "without a network.",
        ("fast", "paper", "procedural"),
    ),
    Row(
        "outline",
        "What a label means: as annotated in the fitted video, or at a share of the light of a "
        "nucleus' core. Pictures stay the same.",
        ("video", 0.25, 0.6),
        outlined=True,
    ),
)

HEAD = f"""# Gallery

One row a setting: all clips of a row have the same seed, and all pictures of a row the same grey
scale. Each is `SyntheticHeLaVideos(frames=1, size={SIDE}, nuclei={NUCLEI}, ...).clip(0)`, without
variation unless a row says otherwise. `make docs` makes this page and its pictures anew.
"""


def list_arguments(row: Row) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the title and the arguments of each picture of a row."""
    parts = dict.fromkeys((part.name for part in fields(Variation)), 0.0)
    for value in row.values:
        varied = {"variation": parts | {row.alone: value}} if row.alone else {row.name: value}
        shared = {"frames": 1, "size": SIDE, "nuclei": NUCLEI, "seed": row.seed, "variation": 0}
        yield f"{row.name} = {value!r}", shared | varied


def draw_row(row: Row, path: Path) -> None:
    """Write the pictures of a row, one beside the other."""
    titles, arguments = zip(*list_arguments(row), strict=True)
    clips = [SyntheticHeLaVideos(**one).clip(0) for one in arguments]
    low, high = measure_display_range([clip["video"] for clip in clips])
    stills = [(clip["video"][0, 0].numpy() - low) / (high - low) for clip in clips]
    write_image_grid(
        np.stack(stills).clip(0, 1) ** GAMMA, path, columns=len(clips), titles=titles,
        grey_range=(0, 1), masks=np.stack([clip["masks"][0] for clip in clips])
        if row.outlined else None,
    )  # fmt: skip


def write_page() -> str:
    """Return the page."""
    text = [HEAD]
    for row in ROWS:
        code = f"variation={{{row.alone!r}: ...}}" if row.alone else f"{row.name}=..."
        titles = ", ".join(title for title, _ in list_arguments(row))
        text.append(
            f"## {row.name.capitalize()}\n\n`{code}`, seed {row.seed}. {row.text}\n\n"
            f"![{titles}](pictures/gallery_{row.name}.png)\n\nFrom left to right: {titles}.\n"
        )
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DOCS)
    folder = parser.parse_args(arguments).folder
    for row in ROWS:
        draw_row(row, folder / "pictures" / f"gallery_{row.name}.png")
    (folder / "gallery.md").write_text(write_page(), encoding="utf-8")
    print(f"wrote {folder / 'gallery.md'} and {len(ROWS)} pictures")


if __name__ == "__main__":
    main()
