"""Train Trackastra on synthetic clips, on an annotated video, or on both.

Writes a folder that Trackastra itself loads. Killed, the same command goes on.

    pip install 'bvdm-data[tracking]'
    python examples/train_trackastra.py --output linker
    python examples/train_trackastra.py --output linker --real MyCells --model my.safetensors
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bvdm_data import CTCVideos, MixedVideos, SyntheticHeLaVideos
from bvdm_data.evaluation.clip_cache import FirstClips
from bvdm_data.evaluation.linker import (
    LINKER_TRAINING,
    Linker,
    LinkerSettings,
    save_linker,
    train_linker,
)

TABLES = ("masks", "tracks")


def main(arguments: Sequence[str] | None = None) -> Linker:
    """Train for some steps; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("linker"))
    parser.add_argument("--steps", type=int, default=LINKER_TRAINING.steps)
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--nuclei", type=int, nargs=2, default=(8, 60), help="in the first frame")
    parser.add_argument("--model", default="hela")
    parser.add_argument("--method", default="fast")
    parser.add_argument("--real", type=Path, help="folder of annotated videos, mixed in 1 to 3")
    parser.add_argument("--sequence", default="01")
    parser.add_argument("--only-real", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument(
        "--own-layers", action="store_true",
        help="Trackastra's layers as they are: its folder then needs no mending",
    )  # fmt: skip
    given = parser.parse_args(arguments)

    torch.set_num_threads(1)
    shape = {"frames": given.frames, "size": given.size, "annotations": TABLES}
    clips: Any = SyntheticHeLaVideos(
        **shape, model=given.model, method=given.method, nuclei=tuple(given.nuclei), seed=given.seed
    )
    if given.real:
        real = CTCVideos(given.real, sequence=given.sequence, scale=clips.scale, **shape)
        mix = MixedVideos({"real": real, "synthetic": clips}, weights={"real": 1, "synthetic": 3})
        clips = real if given.only_real else mix
    settings = LinkerSettings(
        width=given.width,
        pre_norm=not given.own_layers,
        training=replace(LINKER_TRAINING, steps=given.steps, seed=given.seed),
    )
    checkpoint = given.output / "training.pt"
    linker = train_linker(FirstClips(clips, given.clips), settings, checkpoint=checkpoint)
    save_linker(linker, given.output)
    print(
        f"wrote {given.output} after {given.steps} steps, held out "
        f"{linker.log.held_out[-1][1]:.4f}, reach {linker.settings.reach:.0f} px"
    )
    return linker


if __name__ == "__main__":
    main()
