"""Sources of a mix whose clips show where they are from, and a rank of a job that reads one."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch.utils.data import DataLoader

from bvdm_data.clip import CameraScale
from bvdm_data.datasets.mixed import MixedVideos


@dataclass
class FakeVideos:
    """Clips that show their source, their number there, and the epoch."""

    kind: int = 0
    frames: int = 2
    size: tuple[int, int] = (4, 6)
    annotations: tuple[str, ...] = ("masks",)
    max_cells: int = 5
    scale: CameraScale = CameraScale(0, 255)  # noqa: RUF009 - it is frozen
    epoch: int = 0

    def clip(self, index):
        return {
            "video": torch.full((self.frames, 1, *self.size), index / 1e6),
            "masks": torch.full((self.frames, *self.size), self.epoch, dtype=torch.int32),
            "index": torch.tensor(index),
            "source": torch.tensor(self.kind, dtype=torch.int8),
        }

    def set_epoch(self, epoch):
        self.epoch = epoch


@dataclass
class FiniteVideos(FakeVideos):
    """The same, with a length; the endless series has other clips behind it."""

    clips: int = 5

    def __len__(self):
        return self.clips


def make_list(count, **changes):
    """Return a list of clips of FakeVideos."""
    return [FakeVideos(**changes).clip(index) for index in range(count)]


def own_number(clip):
    return round(clip["video"][0, 0, 0, 0].item() * 1e6)


def locate(mix, numbers):
    """Return which source each of these clips is from, and its number there."""
    clips = [mix.clip(number) for number in numbers]
    return [(list(mix.sources)[int(clip["member"])], own_number(clip)) for clip in clips]


def own_numbers(located, name):
    """Return the numbers that clips had in one source."""
    return [number for source, number in located if source == name]


def later_real(epoch, index):
    """Weights of synthetic clips alone ahead of clip 1,500 of epoch 0, of real ones after it."""
    is_real = epoch > 0 or index >= 1500
    return {"real": int(is_real), "synthetic": int(not is_real)}


def by_quotas(**changes):
    """Return a mix of three finite sources: one, three and two clips in a batch."""
    sources = {"real": make_list(7), "synthetic": FakeVideos(kind=1), "more": FiniteVideos(kind=1)}
    arguments = {"quotas": {"more": 2, "real": 1, "synthetic": 3}, "length": 30} | changes
    return MixedVideos(sources, **arguments)


def list_batches(loader):
    """Return number, source and number in the source of the clips of each batch."""
    return [
        [
            [int(index), int(member), own_number({"video": video})]
            for index, member, video in zip(
                batch["index"], batch["member"], batch["video"], strict=True
            )
        ]
        for batch in loader
    ]


def run_rank(folder):
    """Write the batches that one rank of a job gets of a mix by quotas and of one by weight."""
    torch.distributed.init_process_group("gloo")
    number = torch.distributed.get_rank()
    quotas = by_quotas()
    weights = MixedVideos(by_quotas().sources, length=30, batch_size=3)
    found = {
        "quotas": list_batches(DataLoader(quotas, batch_size=6, num_workers=2)),
        "length": len(quotas),
        "weights": list_batches(DataLoader(weights, batch_size=3, num_workers=2)),
    }
    state = quotas.state_dict(consumed=12)
    quotas.load_state_dict(state)
    found |= {"state": state, "rest": list_batches(DataLoader(quotas, batch_size=6, num_workers=1))}
    (Path(folder) / f"{number}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(sys.argv[1])
