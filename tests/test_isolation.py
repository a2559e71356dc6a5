import contextlib
import copy
import multiprocessing
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from bvdm_data.clip import ANNOTATIONS
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.device_loader import DeviceLoader
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.system import isolate
from tests.helpers.streams import same


@contextlib.contextmanager
def changed(change, value, back):
    change(value)
    try:
        yield
    finally:
        change(back)


AROUND = {
    "float64": partial(changed, torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": partial(changed, torch.set_default_dtype, torch.bfloat16, torch.float32),
    "meta": partial(changed, torch.set_default_device, "meta", None),
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "numpy raises": partial(np.errstate, all="raise"),
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "deterministic": partial(changed, torch.use_deterministic_algorithms, True, False),
    "bfloat16 products": partial(changed, torch.set_float32_matmul_precision, "medium", "highest"),
    "no oneDNN": partial(changed, partial(setattr, torch.backends.mkldnn, "enabled"), False, True),
    "threads": partial(changed, torch.set_num_threads, 3, torch.get_num_threads()),
}


def read_settings():
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
        torch.is_inference_mode_enabled(), torch.is_grad_enabled(), np.geterr(),
        torch.is_autocast_enabled("cpu"), torch.backends.mkldnn.enabled,
    )  # fmt: skip


@pytest.fixture
def tiny(tiny_model, tiny_ctc):
    """Make small clips of every kind; the keywords replace arguments of the synthetic ones."""

    def tiny(**changes):
        shared = {"frames": 2, "size": 40, "nuclei": 2, "max_cells": 16, "model": tiny_model}
        shared |= {"annotations": ANNOTATIONS, **changes}
        quick = PaperSettings(first_steps=1, later_steps=0)
        synthetic = [
            SyntheticHeLaVideos(**shared | how)
            for how in ({"method": quick}, {"method": "procedural"}, {"method": "fast"})
        ]
        affine = v2.RandomAffine(40)
        return [
            *synthetic,
            SyntheticHeLaVideos(**shared, pool=True, transform=affine),
            CTCVideos(tiny_ctc, frames=2, size=32, border=0, transform=affine),
            MixedVideos({"a": synthetic[0], "b": synthetic[1]}),
        ]

    return tiny


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_program_around_changes_no_byte(around, tiny, tiny_model, tmp_path):
    wanted = [videos.clip(1) for videos in tiny()]
    with around():
        before = read_settings()
        made = tiny(model=shutil.copy(tiny_model, tmp_path))
        found = [videos.clip(1) for videos in made]
        duplicate = copy.deepcopy(made[1])
        duplicate.set_epoch(1)
        assert read_settings() == before
    duplicate.set_epoch(0)
    made.append(duplicate)
    found.append(found[1])
    wanted.append(wanted[1])
    for clip, later, one in zip(found, (videos.clip(1) for videos in made), wanted, strict=True):
        assert same(clip, one)
        assert same(later, one)
        assert not any(value.is_inference() for value in clip.values())


def test_threads_make_the_same_clips(tiny):
    def shake(clip):
        first = torch.rand(1)
        time.sleep(0.001)
        return {**clip, "video": clip["video"] * first + torch.rand(1)}

    *_, pool, real, mix = tiny()
    pool.transform = real.transform = shake
    for videos in (pool, real, mix):
        numbers = [0, 1, 2] * 2
        wanted = [videos.clip(number) for number in range(3)]
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(videos.clip, numbers))
        assert all(same(clip, wanted[n]) for clip, n in zip(found, numbers, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_forked_child_begins_outside():
    begun = threading.Event()

    def work():
        with isolate():
            begun.set()
            time.sleep(0.2)

    def look(results):
        with isolate():
            results.put(1)
        results.put(torch.get_default_dtype() is torch.float64)

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with changed(torch.set_default_dtype, torch.float64, torch.float32):
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        child = context.Process(target=look, args=(results,))
        child.start()
        child.join(20)
        thread.join()
    assert child.exitcode == 0
    assert [results.get(), results.get()] == [1, True]


def test_device_loader_refuses_other_dtype(tiny):
    videos = tiny(annotations=())[2]
    with DeviceLoader(videos, device="cpu") as loader:
        next(iter(loader))
        with (
            changed(torch.set_default_dtype, torch.float64, torch.float32),
            pytest.raises(RuntimeError, match=r"must be torch.float32 .* got torch.float64; call"),
        ):
            iter(loader)
