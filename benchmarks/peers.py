"""Time clips of this package beside what its peers make, and fill a table of docs/performance.md.

Run ``python -m benchmarks.peers`` in an environment that has them, too: ``pip install -e .
deeptrack==2.0.2 torchio==1.2.1 monai==1.6.1``. All make 8 frames of 256 x 256 px in one thread, in
turn. They do not make the same: only this package has nuclei that live, divide and move, and only
DeepTrack2 draws from nothing, too.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch

from benchmarks.curves import DOCS
from benchmarks.speed_measures import DENSITIES, FRAMES, REAL, SIZE, clips
from benchmarks.tables import between_marks
from bvdm_data import CTCVideos
from bvdm_data.evaluation.copy_paste import CopyPaste
from bvdm_data.files import open_atomic
from bvdm_data.speed import warm_up
from bvdm_data.system import get_machine_info, list_versions

PAGE, RESULTS = DOCS / "performance.md", DOCS / "peers.json"
PACKAGES = ("bvdm-data", "torch", "numpy", "deeptrack", "torchio", "monai")
WANTED = ("masks", "tracks")

Maker = Callable[[int], object]


def make_ours(**changes: Any) -> Maker:
    videos = clips(annotations=WANTED, **changes)
    start = warm_up(videos)
    return lambda number: videos.clip(start + number)


def read_real() -> Maker:
    """Read windows of the real video, of which the data set keeps frames in memory."""
    return CTCVideos(REAL, sequence="01", frames=FRAMES, size=SIZE, annotations=WANTED).clip


def paste_nuclei() -> Maker:
    """Make as many stills as a clip has frames; they show no motion."""
    pasted = CopyPaste(REAL, sequence="01", size=SIZE)
    return lambda number: [pasted.clip(FRAMES * number + frame) for frame in range(FRAMES)]


def draw_ellipses() -> Maker:
    """Draw bright ellipses under a fluorescence microscope, with masks; they show no motion."""
    import deeptrack as dt

    rng = np.random.default_rng(0)
    cell = dt.Ellipse(
        radius=lambda: rng.uniform(8e-6, 12e-6, 2),
        intensity=lambda: rng.uniform(0.5, 1),
        position=lambda: rng.uniform(0, SIZE[0], 2),
        rotation=lambda: rng.uniform(0, 2 * np.pi),
    )
    cells = cell ^ DENSITIES["01"]
    optics = dt.Fluorescence(
        NA=0.7, wavelength=680e-9, resolution=1e-6, magnification=1, output_region=(0, 0, *SIZE)
    )
    masks = cells >> dt.SampleToMasks(
        lambda: lambda drawn: drawn > 0, output_region=optics.output_region, merge_method="or"
    )
    frame = (optics(cells) >> dt.Gaussian(sigma=0.05)) & masks
    return lambda _: [frame.update()() for _ in range(FRAMES)]


def augment_by_torchio() -> Maker:
    """Move and change a clip in memory as a volume: affine, elastic, bias, noise and gamma."""
    import torchio as tio

    clip = clips(annotations=WANTED).clip(0)
    subject = tio.Subject(
        video=tio.ScalarImage(tensor=clip["video"].movedim(1, 0)),
        masks=tio.LabelMap(tensor=clip["masks"][None]),
    )
    change = tio.Compose(
        [
            tio.RandomAffine(), tio.RandomElasticDeformation(max_displacement=(0, 7.5, 7.5)),
            tio.RandomBiasField(), tio.RandomNoise(), tio.RandomGamma(),
        ]
    )  # fmt: skip
    return lambda _: change(subject)


def augment_by_monai() -> Maker:
    """Move and change a clip in memory, its frames as channels: elastic, noise and contrast."""
    from monai import transforms

    clip = clips(annotations=WANTED).clip(0)
    given = {"video": clip["video"][:, 0], "masks": clip["masks"].float()}
    keys = ("video", "masks")
    change = transforms.Compose(
        [
            transforms.Rand2DElasticd(
                keys, spacing=(30, 30), magnitude_range=(1, 2), prob=1.0, rotate_range=3.0,
                scale_range=0.1, mode=("bilinear", "nearest"),
            ),
            transforms.RandGaussianNoised("video", prob=1.0, std=0.01),
            transforms.RandAdjustContrastd("video", prob=1.0),
        ]
    )  # fmt: skip
    return lambda _: change(dict(given))


MAKERS: dict[str, Callable[[], Maker]] = {
    "fresh clips": make_ours,
    "clips with a pool": lambda: make_ours(pool=True),
    "`CTCVideos`, windows of a real video": read_real,
    "real nuclei pasted on stills (the evaluation's copy-paste)": paste_nuclei,
    "DeepTrack2: ellipses, fluorescence, noise, masks": draw_ellipses,
    "TorchIO: affine, elastic, bias, noise, gamma": augment_by_torchio,
    "MONAI: elastic, noise, contrast": augment_by_monai,
}


def measure(rounds: int) -> dict[str, float]:
    """Return the median CPU time of a clip by each maker, ms; they take turns."""
    torch.set_num_threads(1)
    makers = {name: begin() for name, begin in MAKERS.items()}
    for make in makers.values():
        make(0)
    times: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(1, rounds + 1):
        for name, make in makers.items():
            begun = time.process_time()
            make(number)
            times[name].append(1000 * (time.process_time() - begun))
    return {name: statistics.median(some) for name, some in times.items()}


def list_rows(found: dict[str, Any]) -> Iterator[str]:
    fresh = found["milliseconds"]["fresh clips"]
    yield "| 8 frames of 256 x 256 px by | ms of a core | time of a fresh clip |"
    yield "| --- | ---: | ---: |"
    for name, one in found["milliseconds"].items():
        yield f"| {name} | {one:.0f} | {one / fresh:.2f} |"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    machine = found["machine"]
    yield f"\n{machine['processor']} ({machine['vectors']}), {versions}; made {found['made']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    found = {
        "milliseconds": measure(parser.parse_args().rounds),
        "machine": get_machine_info(),
        "versions": list_versions(PACKAGES),
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    with open_atomic(RESULTS) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    text = "\n".join(list_rows(found))
    PAGE.write_text(between_marks(PAGE.read_text(), {"peers": text}))
    print(text)


if __name__ == "__main__":
    main()
