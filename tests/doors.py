"""The doors of the library, and what a user may put through them."""

import errno
import shutil

import numpy as np
import tifffile
import torch

from bvdm_data import CTCVideos, MixedVideos, SyntheticHeLaVideos
from bvdm_data.datasets import export
from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.fitting.fit import fit
from bvdm_data.fitting.training import Run, TrainingSettings, train


class Place:
    """A folder with a real video and a model, which a case may spoil."""

    def __init__(self, folder, data, model, generator, patch):
        self.folder, self.data, self.model = folder, data, model
        self.generator, self.patch = generator, patch

    def frame(self, name="01/t003.tif", image=None, **how):
        """Replace an image by another one; without one, make it 161 pixels wide."""
        image = np.zeros((128, 161), np.uint16) if image is None else image
        tifffile.imwrite(self.data / name, image, photometric="minisblack", **how)
        return self

    def cut(self, name, share=0.5):
        path = self.data / name
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return self

    def remove(self, name):
        path = self.data / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self

    def folder_of(self, name):
        (self.data / name).mkdir(parents=True)
        return self.data / name

    def table(self, old, new):
        path = self.data / "01_GT/TRA/man_track.txt"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        return self

    def file(self, name, content=b"no model"):
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def full_disk(self, where, name):
        def fill(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch.setattr(where, name, fill)
        return self

    # The doors

    def read(self, sequence="01", truth="auto", **_):
        return read_sequence(self.data, sequence, truth)

    def real(self, **changes):
        return CTCVideos(self.data, **{"frames": 4, "size": 64, "border": 10} | changes)

    def synthetic(self, **changes):
        given = {"frames": 2, "size": 64, "model": self.model} | changes
        return SyntheticHeLaVideos(**given)

    def mixed(self, one=None, other=None, **changes):
        first = self.synthetic(**one or {})
        return MixedVideos({"one": first, "other": self.synthetic(**other or {})}, **changes)

    def fit(self, **changes):
        given = {"sequence": "01", "progress": False} | changes
        return fit(self.data, self.folder / "out.safetensors", **given)

    def export(self, **changes):
        given = {"frames": 1, "size": 48, "nuclei": 2, "progress": False} | changes
        given = {"model": self.model, "sequences": 1} | given
        return export.export(self.folder / "exported", **given)

    def clip(self):
        return self.real(annotations=("masks",)).clip(0)

    def checkpoint(self):
        path = self.folder / "checkpoint.safetensors"
        losses = lambda model, step: model.weight.sum(), lambda model: 0.0
        run = Run(path, progress=False)
        train(torch.nn.Linear(1, 1), losses, TrainingSettings(steps=1), run, "line")
        return path
