"""Train our U-Net and the authors' on the same batches and print their held-out losses.

Run ``python -m benchmarks.compare_unets [DATA_ROOT] --steps 300``; DATA_ROOT is the folder of
Fluo-N2DL-HeLa. Both get the same images, noise and steps. An interrupted run resumes.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.reference_unet import ReferenceUNet
from benchmarks.speed_measures import REAL
from bvdm_data.datasets.ctc import guess_scale, read_sequence
from bvdm_data.fitting.nuclei import extract_crops
from bvdm_data.fitting.paper_networks import DDPM_TRAINING, make_ddpm_losses, normalize_crops
from bvdm_data.fitting.training import Run, compute_fingerprint, train
from bvdm_data.fitting.video import read_video
from bvdm_data.synth.networks import UNet


def main() -> None:
    """Train both; print one line for each, and the ratio of the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=REAL)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--work-dir", type=Path, default=Path("unets.fit"))
    given = parser.parse_args()
    source = read_sequence(given.root, "01")
    video = read_video(source, guess_scale(source), progress=False)
    textures = normalize_crops(extract_crops(video))
    training = replace(
        DDPM_TRAINING, steps=given.steps, save_every=20, check_every=min(100, given.steps)
    )
    losses, found = make_ddpm_losses(textures, training), {}
    for name, kind in (("ours", UNet), ("authors'", ReferenceUNet)):
        torch.manual_seed(0)
        network = kind().to(memory_format=torch.channels_last)
        run = Run(given.work_dir / f"{kind.__name__}.pt")
        log = train(network, losses, training, run, compute_fingerprint(name, given.steps))
        found[name] = log.held_out
        steps = ", ".join(f"{loss:.5f} at {step}" for step, loss in log.held_out)
        print(f"{name}: held-out loss {steps}")
    ours, theirs = found["ours"][-1][1], found["authors'"][-1][1]
    print(f"after {given.steps} steps: held-out loss ours / authors' = {ours / theirs:.3f}")


if __name__ == "__main__":
    main()
