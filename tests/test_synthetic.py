import ast
import itertools
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from bvdm_data import weights
from bvdm_data.clip import ANNOTATIONS, STAGES, CameraScale, build_schema
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.synth.model import TextureModel
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import estimate_rows
from bvdm_data.synth.synthesis import draw_scene
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import describe_cpu
from tests.helpers.streams import read_random_states, same

QUICK = PaperSettings(first_steps=2, later_steps=1)
either_method = pytest.mark.parametrize("method", ["fast", QUICK], ids=["fast", "paper"])

# On a machine with one core PyTorch warns of two workers.
two_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")


@pytest.fixture
def tiny(tiny_model):
    """Make a data set of small clips; the keywords replace arguments."""

    def tiny(**changes):
        arguments = {"frames": 4, "size": (48, 56), "nuclei": 2, "max_cells": 24}
        return SyntheticHeLaVideos(**arguments | {"model": tiny_model, **changes})

    return tiny


@either_method
def test_clip_follows_the_schema(tiny, method):
    clip = tiny(annotations=ANNOTATIONS, method=method).clip(0)
    found = {key: (value.dtype, tuple(value.shape)) for key, value in clip.items()}
    assert found == build_schema(4, (48, 56), 24)
    assert found["flow"] == (torch.float32, (3, 2, 48, 56))
    assert found["tracks"] == (torch.int32, (24, 4))
    assert clip["source"] == 1


def test_annotations_can_be_left_out(tiny):
    full = tiny(annotations="all").clip(1)
    assert full.keys() == {"video", *ANNOTATIONS, "index", "source"}
    for names in ((), *((name,) for name in ANNOTATIONS)):
        clip = tiny(annotations=names).clip(1)
        assert set(clip) == {"video", "index", "source", *names}
        assert same(clip, {key: full[key] for key in clip})


@pytest.mark.parametrize(
    ("method", "count"),
    [("fast", 20), pytest.param(QUICK, 20, marks=pytest.mark.heavy)],
    ids=["fast", "paper"],
)
def test_clips_with_divisions_are_consistent(tiny, method, count):
    dataset = tiny(annotations=ANNOTATIONS, frames=5, nuclei=3, method=method)
    divisions = lost = 0
    for index in range(count):
        clip = dataset.clip(index)
        check_clip(clip)
        assert clip["index"] == index
        parents = clip["tracks"][:, 3]
        divisions += int((parents[parents > 0].bincount() == 2).sum())
        lost += int(((clip["tracks"][:, 0] > 0) & (clip["tracks"][:, 2] < 4)).sum())
    assert divisions >= 5
    assert lost > divisions


@either_method
def test_unusual_clips_are_consistent(tiny, method):
    given = {"annotations": ANNOTATIONS, "method": method}
    clip = tiny(frames=1, **given).clip(0)
    check_clip(clip)
    assert clip["flow"].shape == (0, 2, 48, 56)
    clip = tiny(nuclei=0, **given).clip(0)
    check_clip(clip)
    assert not clip["masks"].any()
    assert clip["video"].std() > 0
    check_clip(tiny(nuclei=None, frames=3, size=(80, 72), max_cells=64, **given).clip(0))


@pytest.mark.parametrize(
    "method", ["fast", PaperSettings(first_steps=1, later_steps=0)], ids=["fast", "paper"]
)
def test_nuclei_are_brighter_than_background(tiny, method):
    clip = tiny(size=(64, 64), nuclei=3, method=method).clip(0)
    video, inside = clip["video"][:, 0], clip["masks"] > 0
    assert video[inside].median() > 1.3 * video[~inside].median()
    # Grey values are whole counts of the camera.
    assert tiny().scale == CameraScale(32768, 36863)
    counts = video.double() * 4095
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)


def test_data_sets_know_their_units(tiny):
    assert (tiny().minutes, tiny().pixel_size) == (30.0, None)
    assert (SyntheticHeLaVideos().minutes, SyntheticHeLaVideos().pixel_size) == (30.0, 0.645)


def test_first_frame_shows_wanted_nuclei(tiny):
    for nuclei, possible in [(3, {3}), ((1, 3), {1, 2, 3})]:
        for method, count in (("fast", 16), (QUICK, 3)):
            dataset = tiny(nuclei=nuclei, frames=1, method=method)
            found = {len(dataset.clip(n)["masks"][0].unique()) - 1 for n in range(count)}
            assert found <= possible if method == QUICK else found == possible


def test_default_loader_batches_clips(tiny):
    batches = list(DataLoader(tiny(length=3, annotations=ANNOTATIONS), batch_size=2))
    assert [batch["video"].shape[0] for batch in batches] == [2, 1]
    assert batches[0]["tracks"].shape == (2, 24, 4)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 1, 2]


@two_workers
@pytest.mark.parametrize(("workers", "method"), [(1, "fast"), (2, QUICK)], ids=["1", "2-paper"])
def test_clip_does_not_depend_on_worker(tiny, workers, method):
    given = {"length": 4, "annotations": ANNOTATIONS, "frames": 2, "method": method}
    dataset = tiny(**given)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    clips = {int(clip["index"]): clip for clip in loader}
    assert sorted(clips) == [0, 1, 2, 3]
    assert all(same(clips[index], dataset.clip(index)) for index in (3, 0, 1, 2, 3))
    packed = pickle.dumps(dataset)
    assert len(packed) < 20_000
    assert same(clips[3], pickle.loads(packed).clip(3))
    if workers == 1:
        dataset.transform = v2.RandomAffine(80)
        seen = list(DataLoader(dataset, None, num_workers=2))
        assert all(same(seen[index], dataset.clip(index)) for index in (2, 0))


def test_seed_epoch_and_index_change_clips(tiny):
    dataset = tiny()
    videos = [dataset.clip(0)["video"], dataset.clip(1)["video"], tiny(seed=1).clip(0)["video"]]
    dataset.set_epoch(1)
    videos.append(dataset.clip(0)["video"])
    dataset.set_epoch(0)
    assert torch.equal(dataset.clip(0)["video"], videos[0])
    for n, video in enumerate(videos):
        assert not any(torch.equal(video, other) for other in videos[:n])


@either_method
def test_clip_does_not_depend_on_threads(tiny, method):
    dataset, before = tiny(annotations=ANNOTATIONS, method=method), torch.get_num_threads()
    clips = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            clips.append(dataset.clip(2))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert same(*clips)


@pytest.mark.heavy
@pytest.mark.skipif(describe_cpu()["torch"] == "DEFAULT", reason="needs vector instructions")
def test_other_instructions_keep_masks(tiny_model):
    code = (
        "from bvdm_data.datasets.synthetic import SyntheticHeLaVideos as Videos\n"
        "from bvdm_data.system import describe_cpu\n"
        "from bvdm_data.weights import load\n"
        f"clip = Videos(frames=2, size=64, nuclei=2, model={str(tiny_model)!r}).clip(0)\n"
        f"kind = str(load({str(tiny_model)!r}).get_denoiser(1).inlet.weight.dtype)\n"
        "tables = (clip[key].tolist() for key in ('masks', 'tracks', 'video'))\n"
        "print([kind, describe_cpu(), *tables])"
    )
    command, found = [sys.executable, "-c", code], []
    for limit in ({}, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}):
        printed = subprocess.check_output(command, env={**os.environ, **limit}, text=True)
        found.append(ast.literal_eval(printed))
    (_, here, *tables, video), (kind, other, *others, _) = found
    assert kind == "torch.float32"
    assert tables == others
    assert here == describe_cpu()
    assert here["torch"] != other["torch"] == "DEFAULT"
    assert other["onednn"] == f"{here['onednn']}, at most sse41"
    assert np.ptp(video) > 0


@either_method
def test_clips_leave_global_random_states(tiny, tiny_generator, tmp_path, request, method):
    path = tmp_path / "fresh.safetensors"
    weights.save(tiny_generator, path)
    before = read_random_states()
    tiny(model=path, method=method).clip(0)
    # beartype draws from the last one.
    count = 2 if request.config.getoption("jaxtyping_packages", None) else 3
    assert read_random_states()[:count] == before[:count]


@pytest.mark.parametrize("workers", [0, 1])
def test_replaced_models_are_refused(tiny, tiny_generator, tmp_path, workers):
    path = tmp_path / "model.safetensors"
    weights.save(tiny_generator, path)
    videos = tiny(model=path)
    first = videos.clip(0)
    weights.save(replace(tiny_generator, card={"hours": 3}), path)  # an equal fit
    assert same(videos.clip(0), first)
    other = replace(tiny_generator, texture=TextureModel(memory=0.5, fresh=0.5))
    weights.save(other, path)
    words = rf"model\.safetensors was replaced: its SHA-256 is .*, but was {videos.digest} .*clip 0"
    with pytest.raises(ValueError, match=words):
        next(iter(DataLoader(videos, batch_size=None, num_workers=workers)))
    assert not same(tiny(model=path).clip(0), first)


def test_model_on_device_is_a_copy(tiny_generator):
    state = torch.get_rng_state()
    moved = tiny_generator.to(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("painter", "unet", "flownet"):
        before, after = getattr(tiny_generator, name), getattr(moved, name)
        assert before is not after
        assert not after.training
        for key, value in before.state_dict().items():
            assert torch.equal(after.state_dict()[key], value)
    assert moved.card == tiny_generator.card


def test_length_ends_only_the_iteration(tiny):
    dataset, endless = tiny(length=2), tiny(frames=1, nuclei=1)
    assert len(dataset) == len(DataLoader(dataset, batch_size=None)) == 2
    assert [int(clip["index"]) for clip in dataset] == [0, 1]
    assert torch.equal(dataset.clip(3)["video"], tiny().clip(3)["video"])
    mix = MixedVideos({"a": tiny(length=1), "b": tiny(length=1, seed=1)}, length=5)
    assert [int(clip["index"]) for clip in mix] == [0, 1, 2, 3, 4]
    assert [int(clip["index"]) for clip in itertools.islice(endless, 4)] == [0, 1, 2, 3]
    with pytest.raises(TypeError, match=r"endless and has no len\(\); give it a length"):
        len(endless)


def test_transform_moves_video_and_masks(tiny):
    seen = {}

    def flip(clip):
        seen.update(clip)
        return v2.RandomHorizontalFlip(p=1)(clip)

    before, after = tiny().clip(0), tiny(transform=flip).clip(0)
    for key in ("video", "masks"):
        assert torch.equal(after[key], before[key].flip(-1))
        assert type(after[key]) is torch.Tensor
    assert torch.equal(after["tracks"], before["tracks"])
    assert isinstance(seen["video"], tv_tensors.Video)
    assert isinstance(seen["masks"], tv_tensors.Mask)


def test_annotations_follow_the_transform(tiny):
    given = {"annotations": ANNOTATIONS, "frames": 5, "nuclei": 3}
    plain, dataset = tiny(**given), tiny(transform=v2.RandomAffine(80, scale=(0.8, 1.2)), **given)
    for index in range(2):
        clip = dataset.clip(index)
        check_clip(clip)
        assert not torch.equal(clip["masks"], plain.clip(index)["masks"])
    hidden = tiny(transform=dataset.transform, **given | {"annotations": ("tracks", "boxes")})
    clip = hidden.clip(3)
    check_clip(clip)
    assert set(clip) == {"video", "tracks", "boxes", "index", "source"}


def test_arguments_accept_numpy_and_lists(tiny):
    dataset = tiny(frames=np.int64(2), size=[48, 48], nuclei=[1, 2], seed=np.uint8(3))
    assert dataset.nuclei == (1, 2)
    assert dataset.size == (48, 48)
    for size in (np.int64(48), np.array([48, 48]), torch.tensor([48, 48]), torch.Size([48, 48])):
        assert tiny(size=size).size == (48, 48)
    check_clip(dataset.clip(np.int64(1)))


def test_every_method_makes_other_clips(tiny):
    named = {"fast": FastSettings(), "paper": PaperSettings(), "procedural": ProceduralSettings()}
    for name, settings in named.items():
        assert tiny(method=name).method == settings
        assert tiny(method=settings).variation == (1 if name == "fast" else 0)
    videos = [tiny(method=method).clip(0)["video"] for method in ("fast", QUICK, "procedural")]
    assert torch.equal(tiny(method=FastSettings()).clip(0)["video"], videos[0])
    videos.append(tiny(method=FastSettings(steps=2)).clip(0)["video"])
    for number, video in enumerate(videos):
        assert not any(torch.equal(video, other) for other in videos[:number])


def test_model_without_paper_networks_works(tiny, tiny_generator, tmp_path):
    path = tmp_path / "lean.safetensors"
    weights.save(replace(tiny_generator, unet=None, flownet=None), path)
    for method in ("fast", "procedural"):
        check_clip(tiny(model=path, method=method, annotations=ANNOTATIONS).clip(0))
        assert same(tiny(model=path, method=method).clip(0), tiny(method=method).clip(0))
    for method in ("paper", QUICK):
        with pytest.raises(ValueError, match=r"fitted for, got 'paper'; fit .*bvdm-data fit --pa"):
            tiny(model=path, method=method)


@pytest.mark.parametrize(
    "method", ["fast", QUICK, "procedural"], ids=["fast", "paper", "procedural"]
)
def test_varied_clips_are_consistent(tiny, method):
    dataset, plain = (
        tiny(variation=variation, annotations=ANNOTATIONS, method=method) for variation in (1, 0)
    )
    for index in range(3):
        clip = dataset.clip(index)
        check_clip(clip)
        assert same(clip, dataset.clip(index))
        assert not torch.equal(clip["video"], plain.clip(index)["video"])
    usual = dataset if isinstance(dataset.method, FastSettings) else plain
    assert same(usual.clip(0), tiny(annotations=ANNOTATIONS, method=method).clip(0))


@pytest.mark.parametrize("pool", [None, PoolSettings(pairs=4)])
def test_full_tables_keep_nuclei_out(tiny, pool):
    roomy, full = (tiny(nuclei=3, frames=6, pool=pool, annotations=ANNOTATIONS) for _ in range(2))
    full.max_cells = 4  # fewer than any constructor takes
    capped = 0
    for number in range(6):
        free, clip = roomy.clip(number), full.clip(number)
        check_clip(clip)
        rows = int((free["tracks"][:, 0] > 0).sum())
        assert int((clip["tracks"][:, 0] > 0).sum()) == min(rows, 4)
        if rows > 4:
            capped += 1
            late = int(free["tracks"][4, 1])
            assert torch.equal(clip["masks"][:late], free["masks"][:late])
            assert not torch.equal(clip["masks"], free["masks"])
    assert capped >= 2


def test_rows_follow_from_the_settings(tiny):
    def rows(**changes):
        return tiny(**{"nuclei": None, "max_cells": None, "variation": 0} | changes).max_cells

    usual = rows()
    assert usual == rows(seed=9) == rows(annotations=("masks",)) == rows(length=3)
    for more in ({"frames": 40}, {"size": 128}, {"variation": 1}, {"at_least": 5}, {"nuclei": 5}):
        assert rows(**more) > usual
    assert rows(nuclei=(0, 5)) == rows(nuclei=5)
    clip = tiny(max_cells=None, annotations=ANNOTATIONS).clip(0)
    assert len(clip["tracks"]) == len(clip["boxes"]) == tiny(max_cells=None).max_cells


@either_method
@pytest.mark.parametrize("size", [24, 64, (40, 150)])
def test_most_nuclei_are_placed(tiny, tiny_generator, method, size):
    words = r"only (\d+) do in every clip"
    with pytest.raises(ValueError, match=words) as info:
        tiny(nuclei=10**4, size=size, max_cells=None)
    most = int(re.search(words, str(info.value))[1])
    for variation in (0, 1):
        how = {"size": size, "max_cells": None, "frames": 1, "variation": variation}
        videos = tiny(nuclei=most, method=method, **how)
        for number in range(8):
            scene = draw_scene(
                tiny_generator, videos._scene(()), videos.method, **videos._place(number)
            )
            assert scene.masks.max() == most
            assert len(np.unique(scene.masks)) == most + 1


def test_dense_model_ends_no_stream(tiny, tiny_generator):
    dense = replace(tiny_generator.motion, density=np.full(3, 0.05))
    model = replace(tiny_generator, motion=dense)
    videos = tiny(nuclei=None, max_cells=None, frames=2, size=48, variation=1)
    settings = videos._scene(())
    rows = estimate_rows(model, settings)[1]
    scene = draw_scene(model, settings, videos.method, **videos._place(0))
    assert videos.max_cells < rows < 65535
    assert 0 < len(scene.tracks) <= videos.max_cells


def test_at_least_leaves_no_clip_empty(tiny):
    how = {"nuclei": None, "max_cells": None, "frames": 1, "size": 32, "method": "procedural"}
    plain, filled = (tiny(**how, at_least=least) for least in (0, 2))
    shown = []
    for number in range(12):
        one, other = (len(each.clip(number)["masks"].unique()) - 1 for each in (plain, filled))
        assert other >= 2
        shown.append(one)
        if one >= 2:
            assert torch.equal(plain.clip(number)["video"], filled.clip(number)["video"])
    assert min(shown) < 2


@pytest.mark.parametrize(
    "how", [{"method": "fast"}, {"method": "procedural"}, {"pool": PoolSettings(pairs=6)}], ids=str
)
def test_death_shows_in_annotations(tiny, how):
    usual = {"frames": 6, "nuclei": 4, "size": 64, "max_cells": None, "annotations": ANNOTATIONS}
    dies, died = STAGES.index("apoptosis"), 0
    for number in range(3):
        clip = tiny(death_rate=0.5, **usual | how).clip(number)
        check_clip(clip)
        parents = clip["tracks"][:, 3]
        for identity, _, last, _ in clip["tracks"][(clip["stages"] == dies).any(1)].tolist():
            died += last < 5
            assert clip["stages"][identity - 1, last] == dies
            assert (parents == identity).sum() <= 1  # hidden for a while, never divided
    assert died
    assert not (tiny(death_rate=0, **usual | how).clip(0)["stages"] == dies).any()


def test_worker_refuses_other_devices(tiny):
    dataset = tiny(length=1, device="meta")
    with pytest.raises(RuntimeError, match="num_workers must be 0 when device is 'meta'"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_clips_are_consistent(tiny):
    clip = tiny(device="cuda", annotations=ANNOTATIONS).clip(0)
    assert all(value.device.type == "cuda" for value in clip.values())
    check_clip(clip)
    other = tiny(annotations=ANNOTATIONS).clip(0)
    assert torch.equal(clip["masks"].cpu(), other["masks"])
    torch.testing.assert_close(clip["video"].cpu(), other["video"], rtol=0, atol=0.02)
