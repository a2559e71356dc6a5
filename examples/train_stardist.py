"""Train StarDist with its own trainer on frames that are made on access.

Needs ``pip install 'bvdm-data[stardist]'``, which brings TensorFlow. StarDist takes any objects
with ``__len__`` and ``__getitem__`` as images and labels; here they are two views of one data set.

    python examples/train_stardist.py --clips 100 --epochs 50
"""

import argparse
import tempfile
from collections.abc import Sequence

from csbdeep.utils import normalize
from stardist.models import Config2D, StarDist2D

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.frames import frame_sequences


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train for some epochs; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="steps an epoch")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--output", help="folder for the trained model; not kept if missing")
    given = parser.parse_args(arguments)

    settings = {"frames": given.frames, "size": given.size, "annotations": ("masks",)}
    training = frame_sequences(
        SyntheticHeLaVideos(seed=0, **settings), given.clips, transform=normalize
    )
    held_out = frame_sequences(SyntheticHeLaVideos(seed=1, **settings), 2, transform=normalize)
    config = Config2D(
        n_rays=32,
        grid=(2, 2),
        unet_n_depth=2,
        unet_n_filter_base=16,
        net_conv_after_unet=32,
        train_patch_size=(given.size, given.size),
        train_batch_size=4,
        train_tensorboard=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = StarDist2D(config, name="nuclei", basedir=given.output or folder)
        history = model.train(
            *training,
            validation_data=held_out,
            epochs=given.epochs,
            steps_per_epoch=given.steps,
            seed=0,
        )
    losses = history.history["loss"]
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} epochs")
    return losses


if __name__ == "__main__":
    main()
