"""Make the figures of docs/: run ``python -m benchmarks.figures [DATA_ROOT] [MODEL]``.

DATA_ROOT is the folder of Fluo-N2DL-HeLa; only its video 01 is shown.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.grid import write_image_grid
from benchmarks.speed_measures import REAL
from bvdm_data import Clip, CTCVideos, PaperSettings, SyntheticHeLaVideos, divisions
from bvdm_data.background import estimate_background
from bvdm_data.clip import PHASES
from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.fitting.contours import trace_contours
from bvdm_data.fitting.denoiser import extract_aligned_crops
from bvdm_data.fitting.nuclei import MASK_LEVEL, extract_crops, measure_nuclei
from bvdm_data.fitting.video import read_video
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.cells import Cell
from bvdm_data.synth.contours import is_inside
from bvdm_data.synth.denoiser import make_pixel_grid
from bvdm_data.synth.model import Model, Variation
from bvdm_data.synth.networks import FLOW_SIZE
from bvdm_data.synth.paper import render_paper_textures
from bvdm_data.synth.textures import FastSettings, denoise_patches, render_textures
from bvdm_data.viz.figure import draw_lineage
from bvdm_data.viz.pictures import measure_display_range, render_frame, write_contact_sheet
from bvdm_data.weights import load

DOCS = Path(__file__).parents[1] / "docs" / "pictures"
SIDE = 64
COLUMNS = 12
FLOOR = 0.014


def outline_masks(radii: np.ndarray) -> torch.Tensor:
    """Convert contours [n, K] to masks [n, 96, 96]."""
    pixels = make_pixel_grid(FLOW_SIZE)[:, None].expand(2, len(radii), -1, -1)
    return is_inside(torch.from_numpy(radii).float(), *pixels)


def middle(pictures: np.ndarray) -> np.ndarray:
    """Crop the centre of patches."""
    edge = (pictures.shape[-1] - SIDE) // 2
    return pictures[..., edge : edge + SIDE, edge : edge + SIDE]


def draw_modes(generator: Model) -> None:
    """First four modes of interphase, metaphase and anaphase, from -2 to +2 deviations."""
    sheets, titles = [], []
    for name in ("interphase", "metaphase", "anaphase"):
        stage = PHASES.index(name)
        for mode in range(4):
            amounts = np.linspace(-2, 2, 5)
            radii = (
                generator.shapes.mean[stage]
                + amounts[:, None] * generator.shapes.modes[stage, mode]
            )
            sheets.append(middle(outline_masks(radii).float().numpy()))
            titles.append(f"{name} {mode + 1}")
    write_image_grid(
        np.concatenate(sheets), DOCS / "shape_modes.png", columns=5,
        titles=["-2 sd", "-1 sd", "mean", "+1 sd", "+2 sd"], row_titles=titles, grey_range=(0, 1),
    )  # fmt: skip


def relative(light: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """Return the centre of crops, normalised as for the denoiser."""
    return middle(light.astype(np.float32) / np.hypot(brightness, FLOOR)[:, None, None])


def draw_stages(generator: Model, portraits: SimpleNamespace) -> None:
    """Real nuclei of each stage above synthetic ones of the same outlines and brightness."""
    draws = numpy_rng(0, "figures")
    sheets, titles = [], []
    for stage, name in enumerate(PHASES):
        rows = draws.permutation(np.flatnonzero(portraits.stage == stage))[:COLUMNS]
        brightness = portraits.brightness[rows]
        sheets.append(relative(portraits.light[rows], brightness))
        patch = generator.painter.settings.patch
        noise = torch.randn((len(rows), patch, patch), generator=torch_rng(0, "figures", stage))
        made = denoise_patches(
            generator.distilled, noise, torch.from_numpy(portraits.radii[rows]),
            torch.from_numpy(brightness), torch.full((len(rows),), stage),
            steps=FastSettings().steps,
        )  # fmt: skip
        sheets.append(relative(made.numpy(), brightness))
        titles += [f"{name}, real", "synthetic"]
    write_image_grid(
        np.concatenate(sheets), DOCS / "stages.png", columns=COLUMNS, row_titles=titles,
        grey_range=(0, 2),
    )  # fmt: skip


def draw_noise_levels(generator: Model) -> None:
    """The paper's figure 3: the same masks at several T_f=0, not cut at the mask."""
    draws = numpy_rng(3, "figures")
    radii = generator.shapes.sample(np.zeros(COLUMNS, np.int64), draws)
    masks = outline_masks(radii)[:, None]
    sheets = [middle(masks[:, 0].float().numpy() * MASK_LEVEL)]
    titles = ["mask"]
    for steps in (100, 200, 400, 600):
        streams = [torch_rng(3, "figures", i) for i in range(COLUMNS)]
        settings = PaperSettings(first_steps=steps)
        made = render_paper_textures(masks, generator.unet, generator.flownet, settings, streams)
        sheets.append(middle(made.texture[:, 0].numpy()))
        titles.append(f"T_f=0 = {steps}")
    write_image_grid(
        np.concatenate(sheets), DOCS / "noise_levels.png", columns=COLUMNS, row_titles=titles,
        grey_range=(0, 1.2),
    )  # fmt: skip


def draw_time(generator: Model, portraits: SimpleNamespace) -> None:
    """Real and synthetic nuclei through eight frames; outlines of the synthetic are real ones."""
    long = [t for t in np.unique(portraits.track) if (portraits.track == t).sum() >= 8]
    chosen = numpy_rng(5, "figures").permutation(long)[:4]
    sheets, titles = [], []
    for number, track in enumerate(chosen):
        rows = np.flatnonzero(portraits.track == track)[:8]
        brightness = portraits.brightness[rows]
        sheets.append(relative(portraits.light[rows], brightness))
        life = Cell(
            1, 0, 0, portraits.radii[rows].astype(float), portraits.stage[rows].clip(0).astype(int),
            brightness.astype(float), divides=False,
        )  # fmt: skip
        groups = render_textures(
            [life], [(0, 7)], generator.distilled, generator.texture, FastSettings(),
            [torch_rng(5, "figures", number)],
        )  # fmt: skip
        made = np.zeros_like(portraits.light[rows])
        for group in groups:
            rims = [(made.shape[-1] - side) // 2 for side in group.light.shape[-2:]]
            rows_in, columns_in = (slice(rim, made.shape[-1] - rim) for rim in rims)
            made[group.frames.numpy(), rows_in, columns_in] = group.light.numpy()
        sheets.append(relative(made, brightness))
        titles += [f"real nucleus {number + 1}", "its outlines, rendered"]
    write_image_grid(
        np.concatenate(sheets), DOCS / "time.png", columns=8, row_titles=titles,
        titles=[f"frame {f}" for f in range(8)], grey_range=(0, 2),
    )  # fmt: skip


def draw_scenes(root: Path, model: str) -> None:
    """Whole scenes, real and synthetic, at the same grey scale."""
    real = CTCVideos(root, sequence="01", frames=7, size=(192, 192), seed=1)
    synthetic = SyntheticHeLaVideos(
        frames=7, size=(192, 192), model=model, nuclei=(5, 9), variation=0
    )
    # Similar density to the synthetic clips: most windows of the real video are almost empty.
    crowded = [
        clip for clip in map(real.clip, range(60)) if 5 <= len(clip["masks"][0].unique()) <= 10
    ]
    clips = {
        "real 1": crowded[0], "synthetic 1": synthetic.clip(0),
        "real 2": crowded[1], "synthetic 2": synthetic.clip(1),
    }  # fmt: skip
    write_contact_sheet(clips, DOCS / "scenes.png", frames=[0, 3, 6])


def draw_outlines(model: str) -> None:
    """The dimmest, median and brightest nuclei of a clip under outlines of several meanings."""
    sheets, labels, titles, chosen = [], [], [], None
    for outline in ("video", "even", 0.3, 0.6):
        clip = SyntheticHeLaVideos(
            frames=1, size=640, nuclei=90, variation=0, model=model, outline=outline,
            annotations=("masks", "stages"),
        ).clip(0)  # fmt: skip
        masks = clip["masks"][0].numpy()
        light = clip["video"][0, 0].numpy() - estimate_background(
            clip["video"][0, 0].numpy(), masks
        )
        if chosen is None:
            chosen = choose_alone(light, masks, clip["stages"][:, 0].numpy())
        for identity, window in chosen:
            core = np.median(light[window][masks[window] == identity])
            sheets.append(light[window] / core)
            labels.append(masks[window])
        titles.append(f"outline={outline!r}")
    names = ["dim", "dim", "median", "median", "bright", "bright"]
    write_image_grid(
        np.stack(sheets), DOCS / "outlines.png", columns=6, titles=names, row_titles=titles,
        grey_range=(0, 1.5), magnify=3, masks=np.stack(labels),
    )  # fmt: skip


def choose_alone(
    light: np.ndarray, masks: np.ndarray, stages: np.ndarray
) -> list[tuple[int, tuple[slice, ...]]]:
    """Return two dim, two median and two bright nuclei in interphase, and windows around them."""
    found = []
    for identity in np.flatnonzero(stages == 0) + 1:
        y, x = (int(axis.mean()) for axis in np.nonzero(masks == identity))
        window = slice(y - 20, y + 20), slice(x - 20, x + 20)
        if min(y, x) > 20 and max(y, x) < 620 and set(np.unique(masks[window])) == {0, identity}:
            brightness = float(np.median(light[masks == identity]))
            found.append((brightness, (int(identity), window)))
    found.sort(key=lambda one: one[0])
    middle = len(found) // 2
    return [one for _, one in (*found[1:3], *found[middle : middle + 2], *found[-3:-1])]


def draw_variation(model: str) -> None:
    """The same stills without variation, with one part of it alone, and with all parts."""
    parts = [part.name for part in fields(Variation)]
    none = dict.fromkeys(parts, 0.0)
    rows = {"none": none} | {part: none | {part: 1.0} for part in parts if part != "speed"}
    stills = [
        SyntheticHeLaVideos(frames=1, size=128, model=model, at_least=4, variation=amounts)
        .clip(index)["video"][0, 0].numpy()
        for amounts in (rows | {"all": dict.fromkeys(parts, 1.0)}).values()
        for index in range(6)
    ]  # fmt: skip
    write_image_grid(
        np.stack(stills), DOCS / "variation.png", columns=6, row_titles=[*rows, "all"],
        grey_range=(0.04, 0.2),
    )  # fmt: skip


def draw_opening(model: str) -> None:
    """The README's moving picture: a clip, its outlines, and its lineage tree up to the frame."""
    videos = SyntheticHeLaVideos(frames=24, size=192, nuclei=8, variation=0, model=model, seed=5)
    clip = max(map(videos.clip, range(12)), key=lambda one: len(divisions(one)))
    low, high = measure_display_range([clip["video"]])
    panels = []
    for frame, (grey, mask) in enumerate(zip(clip["video"], clip["masks"], strict=True)):
        # The darkest noise becomes black: it is what makes a GIF large.
        shades = {"grey_range": (low + 0.05 * (high - low), high), "gamma": 0.7}
        plain = render_frame(grey, **shades)
        outlined = render_frame(grey, mask, ids=False, **shades)
        tree = draw_tree(clip, frame, plain.height)
        wide = Image.new("RGB", (plain.width * 2 + tree.width + 8, plain.height), "white")
        for left, image in ((0, plain), (plain.width + 4, outlined), (2 * plain.width + 8, tree)):
            wide.paste(image, (left, 0))
        panels.append(wide)
    # One palette for all frames, so that nothing flickers.
    palette = Image.fromarray(np.vstack(panels)).quantize(96)
    first, *rest = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in panels]
    first.save(
        DOCS / "opening.gif", save_all=True, append_images=rest, duration=250, loop=0,
        optimize=True,
    )  # fmt: skip


def draw_tree(clip: Clip, frame: int, height: int) -> Image.Image:
    """The lineage tree with a line at a frame."""
    figure = Figure(figsize=(height / 60, height / 100), dpi=100)
    axes = figure.add_axes((0.02, 0.2, 0.96, 0.78))
    draw_lineage(axes, clip["tracks"], len(clip["video"]))
    axes.axvline(frame, color="black", linewidth=0.8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def main() -> None:
    """Make all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=REAL)
    parser.add_argument("model", nargs="?", default="hela")
    given = parser.parse_args()
    generator = load(given.model)
    source = read_sequence(given.root, "01")
    real = CTCVideos(given.root, sequence="01")
    video = read_video(source, real.scale, progress=False)
    crops = extract_crops(video)
    draw_modes(generator)
    draw_noise_levels(generator)
    nuclei = measure_nuclei(crops, video.tracks)
    aligned = vars(extract_aligned_crops(nuclei, trace_contours(crops.masks), video))
    portraits = SimpleNamespace(**{name: values.numpy() for name, values in aligned.items()})
    portraits.light = portraits.light[:, 0]
    draw_stages(generator, portraits)
    draw_time(generator, portraits)
    draw_scenes(given.root, given.model)
    draw_outlines(given.model)
    draw_variation(given.model)
    draw_opening(given.model)
    print(f"wrote {', '.join(sorted(p.name for p in DOCS.iterdir()))} to {DOCS}")


if __name__ == "__main__":
    main()
