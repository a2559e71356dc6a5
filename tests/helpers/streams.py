"""Streams of numbers in place of clips, and loops over them that are started as programs."""

import hashlib
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch.utils.data import DataLoader

from bvdm_data.clip import ANNOTATIONS
from bvdm_data.datasets.stream import ClipStream
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos

SETTINGS = [{"method": "procedural"}, {"method": "fast"}, {"method": "fast", "pool": True}]
"""Settings of clips that two ranks make as one process does."""


class Numbers(ClipStream):
    """Clips that hold their number and epoch; ``log`` gets the number of each that is made."""

    def __init__(self, log=None, **arguments):
        super().__init__(**arguments)
        self.log = log

    def clip(self, index):
        if self.log is not None:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{index}\n".encode())
            os.close(descriptor)
        return {"index": torch.tensor(index), "epoch": torch.tensor(self.epoch)}


def read_random_states():
    """Return the states of all global random generators as text."""
    return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]  # noqa: NPY002


def read_files(folder):
    """Return the bytes of all files of a folder by their paths in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same(one, other):
    """Return whether two clips or batches are equal, the order of their keys included."""
    return list(one) == list(other) and all(
        one[key].dtype == other[key].dtype
        and torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9))
        for key in one
    )


def batches(loader):
    """Return the numbers of the clips in each batch."""
    return [batch["index"].reshape(-1).tolist() for batch in loader]


def indices(loader):
    """Return the numbers of all clips in their order."""
    return [index for batch in batches(loader) for index in batch]


def logged(log):
    """Return the numbers of the clips that were made, in order of number."""
    text = Path(log).read_text() if Path(log).exists() else ""
    return sorted(int(line) for line in text.split())


def train_killable(folder, workers, batch_size, length, epoch):
    """Train in a program that can be killed: after each batch the checkpoint is written whole."""
    checkpoint = Path(folder) / "checkpoint.json"
    videos = Numbers(length=length, batch_size=batch_size, log=Path(folder) / f"{workers}.txt")
    videos.set_epoch(epoch)
    before = []
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text())
        before = state["seen"]
        videos.load_state_dict(state["videos"])
    seen = list(before)
    loader = DataLoader(videos, batch_size=batch_size, num_workers=workers)
    for step, batch in enumerate(loader, start=1):
        seen += batch["index"].tolist()
        consumed = min(step * batch_size, length - len(before))
        partial = checkpoint.with_suffix(".partial")
        state = {"seen": seen, "videos": videos.state_dict(consumed=consumed)}
        partial.write_text(json.dumps(state))
        partial.replace(checkpoint)
        print(step, flush=True)  # noqa: T201 - the test waits for it
        sys.stdin.readline()


def small_clips(model, **arguments):
    """Return a data set of four small clips."""
    return SyntheticHeLaVideos(
        frames=2, size=40, length=4, model=model, nuclei=2, annotations=ANNOTATIONS, **arguments
    )


def digest(clip):
    """Return the SHA-256 of everything that a clip holds."""
    total = hashlib.sha256()
    for key in sorted(clip):
        total.update(clip[key].numpy().tobytes())
    return total.hexdigest()


def run_rank(folder, model):
    """Be one rank of a job: go over streams in step with the others, and write what was seen."""
    seen = {}
    # Made before the process group, as in many scripts.
    early = Numbers(length=11, batch_size=2)
    torch.distributed.init_process_group("gloo")
    number = torch.distributed.get_rank()

    def run_pass(videos, stop=None, **how):
        numbers = []
        loader = DataLoader(videos, batch_size=2, num_workers=2, **how)
        for step, batch in enumerate(loader, start=1):
            # A rank with fewer batches than the others would let them wait for ever.
            torch.distributed.all_reduce(torch.ones(1))
            numbers += batch["index"].tolist()
            if step == stop:
                break
        torch.distributed.barrier()
        return numbers

    # The process group counts, whatever the environment says.
    os.environ |= {"RANK": "0", "WORLD_SIZE": "7"}
    seen["finite"] = run_pass(early)
    seen["length"] = len(early)
    seen["spawned"] = run_pass(early, multiprocessing_context="spawn")
    seen["unknown batch size"] = run_pass(Numbers(length=11))
    endless = Numbers(batch_size=2)
    seen["endless"] = run_pass(endless, stop=4)
    seen["state"] = endless.state_dict(consumed=8)
    resumed = Numbers(batch_size=2)
    resumed.load_state_dict(seen["state"])
    seen["endless, resumed"] = run_pass(resumed, stop=3)
    early.load_state_dict({"epoch": 0, "seed": 0, "start": 4})
    seen["finite, resumed"] = run_pass(early)
    seen["given"] = run_pass(Numbers(length=4, batch_size=2, shard=(0, 1)))
    seen["clips"] = {}
    for settings in SETTINGS:
        videos = small_clips(model, batch_size=1, **settings)
        videos.set_epoch(2)
        for clip in DataLoader(videos, batch_size=None, num_workers=2):
            seen["clips"][f"{settings} {int(clip['index'])}"] = digest(clip)
    (Path(folder) / f"{number}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "rank":
        run_rank(*sys.argv[2:])
    else:
        train_killable(sys.argv[2], *map(int, sys.argv[3:]))
