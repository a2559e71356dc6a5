import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from bvdm_data import weights
from bvdm_data.clip import ANNOTATIONS, CameraScale, TooManyNucleiError
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.textures import FastSettings

QUICK = PaperSettings(first_steps=2, later_steps=1)
either_method = pytest.mark.parametrize("method", ["fast", QUICK], ids=["fast", "paper"])

# On a machine with one core PyTorch warns of two workers.
two_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")


@pytest.fixture
def tiny(tiny_model):
    """Make a data set of small clips; the keywords replace arguments."""

    def tiny(**changes):
        arguments = {
            "frames": 4,
            "size": (48, 56),
            "model": tiny_model,
            "nuclei": 2,
            "max_cells": 24,
        }
        return SyntheticHeLaVideos(**arguments | changes)

    return tiny


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9)) for key in one
    )


@either_method
def test_a_clip_has_the_wanted_keys_with_their_shapes_and_dtypes(tiny, method):
    clip = tiny(annotations=ANNOTATIONS, method=method).clip(0)
    assert {key: (tuple(value.shape), value.dtype) for key, value in clip.items()} == {
        "video": ((4, 1, 48, 56), torch.float32),
        "masks": ((4, 48, 56), torch.int32),
        "tracks": ((24, 4), torch.int32),
        "flow": ((3, 2, 48, 56), torch.float32),
        "stages": ((24, 4), torch.int8),
        "boxes": ((24, 4, 4), torch.float32),
        "centroids": ((24, 4, 2), torch.float32),
        "index": ((), torch.int64),
        "source": ((), torch.int8),
    }
    assert clip["source"] == 1


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_a_clip_of_one_annotation_has_that_one_as_the_clip_of_all(tiny, name):
    clip, full = tiny(annotations=(name,)).clip(1), tiny(annotations=ANNOTATIONS).clip(1)
    assert set(clip) == {"video", name, "index", "source"}
    assert same(clip, {key: full[key] for key in clip})


def test_a_clip_without_annotations_is_video_alone(tiny):
    assert set(tiny(annotations=()).clip(0)) == {"video", "index", "source"}


@either_method
def test_clips_with_divisions_hold_together(tiny, method):
    dataset = tiny(annotations=ANNOTATIONS, frames=5, nuclei=3, size=(48, 56), method=method)
    divisions = lost = 0
    for index in range(20):
        clip = dataset.clip(index)
        check_clip(clip)
        assert clip["index"] == index
        parents = clip["tracks"][:, 3]
        divisions += int((parents[parents > 0].bincount() == 2).sum())
        lost += int(((clip["tracks"][:, 0] > 0) & (clip["tracks"][:, 2] < 4)).sum())
    assert divisions >= 5
    assert lost > divisions


@either_method
def test_clips_of_one_frame_hold_together_with_all_annotations(tiny, method):
    clip = tiny(annotations=ANNOTATIONS, frames=1, method=method).clip(0)
    check_clip(clip)
    assert clip["flow"].shape == (0, 2, 48, 56)


@either_method
def test_clips_without_nuclei_hold_together(tiny, method):
    clip = tiny(annotations=ANNOTATIONS, nuclei=0, method=method).clip(0)
    check_clip(clip)
    assert not clip["masks"].any()
    assert clip["video"].std() > 0


@either_method
def test_clips_of_the_density_of_the_video_hold_together(tiny, method):
    given = {"nuclei": None, "frames": 3, "size": (80, 72), "max_cells": 64, "method": method}
    check_clip(tiny(annotations=ANNOTATIONS, **given).clip(0))


@pytest.mark.parametrize(
    "method", ["fast", PaperSettings(first_steps=1, later_steps=0)], ids=["fast", "paper"]
)
def test_nuclei_are_brighter_than_the_background(tiny, method):
    clip = tiny(size=(64, 64), nuclei=3, method=method).clip(0)
    video, inside = clip["video"][:, 0], clip["masks"] > 0
    assert video[inside].median() > 1.3 * video[~inside].median()


def test_grey_values_are_whole_counts_on_the_scale_of_the_model(tiny):
    dataset = tiny()
    assert dataset.scale == CameraScale(32768, 36863)
    counts = dataset.clip(0)["video"].double() * 4095
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)


@either_method
@pytest.mark.parametrize(("nuclei", "possible"), [(3, {3}), ((1, 3), {1, 2, 3})])
def test_the_first_frame_shows_the_nuclei_that_were_asked_for(tiny, nuclei, possible, method):
    dataset = tiny(nuclei=nuclei, frames=1, method=method)
    found = {len(dataset.clip(n)["masks"][0].unique()) - 1 for n in range(16)}
    assert found == possible


def test_default_loader_batches_clips_without_a_collate_function(tiny):
    batches = list(DataLoader(tiny(length=3, annotations=ANNOTATIONS), batch_size=2))
    assert [batch["video"].shape[0] for batch in batches] == [2, 1]
    assert batches[0]["tracks"].shape == (2, 24, 4)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 1, 2]


@two_workers
@pytest.mark.parametrize(
    ("workers", "method"),
    [(0, "fast"), (1, "fast"), (2, "fast"), (2, QUICK)],
    ids=["0", "1", "2", "2-paper"],
)
def test_a_clip_does_not_depend_on_the_worker(tiny, workers, method):
    dataset = tiny(length=5, annotations=ANNOTATIONS, frames=2, method=method)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    clips = {int(clip["index"]): clip for clip in loader}
    assert sorted(clips) == [0, 1, 2, 3, 4]
    assert all(same(clips[index], dataset.clip(index)) for index in clips)


@either_method
def test_a_clip_does_not_depend_on_the_clips_before_it(tiny, method):
    dataset = tiny(method=method)
    third = dataset.clip(3)
    dataset.clip(0)
    assert same(third, dataset.clip(3))
    assert same(third, tiny(method=method).clip(3))


def test_another_seed_epoch_or_index_makes_another_clip(tiny):
    dataset = tiny()
    videos = [dataset.clip(0)["video"], dataset.clip(1)["video"], tiny(seed=1).clip(0)["video"]]
    dataset.set_epoch(1)
    videos.append(dataset.clip(0)["video"])
    dataset.set_epoch(0)
    assert torch.equal(dataset.clip(0)["video"], videos[0])
    for n, video in enumerate(videos):
        assert not any(torch.equal(video, other) for other in videos[:n])


@either_method
def test_a_clip_does_not_depend_on_the_number_of_threads(tiny, method):
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


@either_method
def test_making_clips_leaves_the_global_random_state_alone(
    tiny, tiny_generator, tmp_path, request, method
):
    path = tmp_path / "fresh.safetensors"
    weights.save(tiny_generator, path)
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]  # noqa: NPY002
    tiny(model=path, method=method).clip(0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    if not request.config.getoption("jaxtyping_packages", None):  # beartype draws from it
        assert random.getstate() == states[2]


def test_a_generator_on_a_device_is_a_copy_with_the_same_weights(tiny_generator):
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


def test_synthetic_videos_pickles_small_and_makes_the_same_clips(tiny):
    dataset = tiny()
    dataset.set_epoch(3)
    clip = dataset.clip(0)
    packed = pickle.dumps(dataset)
    assert len(packed) < 20_000
    assert same(clip, pickle.loads(packed).clip(0))


def test_length_is_the_number_of_clips_of_an_epoch(tiny):
    dataset = tiny(length=2)
    assert len(dataset) == len(DataLoader(dataset, batch_size=None)) == 2
    assert [int(clip["index"]) for clip in dataset] == [0, 1]
    assert dataset.clip(1)["index"] == 1


def test_an_endless_stream_goes_on_and_has_no_length(tiny):
    dataset = tiny(frames=1, nuclei=1)
    stream = iter(dataset)
    assert [int(next(stream)["index"]) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(TypeError, match=r"endless and has no len\(\); give it a length"):
        len(dataset)


def test_the_transform_moves_video_and_masks_alike(tiny):
    before = tiny().clip(0)
    after = tiny(transform=v2.RandomHorizontalFlip(p=1)).clip(0)
    for key in ("video", "masks"):
        assert torch.equal(after[key], before[key].flip(-1))
        assert type(after[key]) is torch.Tensor
    assert torch.equal(after["tracks"], before["tracks"])


def test_annotations_follow_the_transform(tiny):
    given = {"annotations": ANNOTATIONS, "frames": 5, "nuclei": 3}
    plain, dataset = tiny(**given), tiny(transform=v2.RandomAffine(80, scale=(0.8, 1.2)), **given)
    for index in range(4):
        clip = dataset.clip(index)
        check_clip(clip)
        assert not torch.equal(clip["masks"], plain.clip(index)["masks"])
    hidden = tiny(transform=dataset.transform, **given | {"annotations": ("tracks", "boxes")})
    clip = hidden.clip(3)
    check_clip(clip)
    assert set(clip) == {"video", "tracks", "boxes", "index", "source"}


@two_workers
def test_a_random_transform_is_a_function_of_the_clip(tiny):
    dataset = tiny(length=3, transform=v2.RandomAffine(80), annotations=("masks", "flow"))
    seen = {int(clip["index"]): clip for clip in DataLoader(dataset, None, num_workers=2)}
    assert all(same(seen[index], dataset.clip(index)) for index in (2, 0, 1))


def test_the_transform_sees_tv_tensors(tiny):
    seen = {}
    tiny(transform=lambda clip: seen.update(clip) or clip).clip(0)
    assert isinstance(seen["video"], tv_tensors.Video)
    assert isinstance(seen["masks"], tv_tensors.Mask)


def test_arguments_can_be_numpy_numbers_and_lists(tiny):
    dataset = tiny(frames=np.int64(2), size=[48, 48], nuclei=[1, 2], seed=np.uint8(3))
    assert dataset.nuclei == (1, 2)
    assert dataset.size == (48, 48)
    for size in (np.int64(48), np.array([48, 48]), torch.tensor([48, 48]), torch.Size([48, 48])):
        assert tiny(size=size).size == (48, 48)
    check_clip(dataset.clip(np.int64(1)))


def test_the_fast_method_is_the_default(tiny_model):
    dataset = SyntheticHeLaVideos(model=tiny_model)
    assert dataset.method == FastSettings()
    assert dataset.variation == 1
    others = (PaperSettings(), ProceduralSettings())
    for other in others:
        assert SyntheticHeLaVideos(model=tiny_model, method=other).variation == 0
    assert dataset.size == (256, 256)
    assert dataset.annotations == ("masks", "tracks")


def test_every_method_has_a_name_and_makes_clips_of_its_own(tiny):
    named = {"fast": FastSettings(), "paper": PaperSettings(), "procedural": ProceduralSettings()}
    assert {name: tiny(method=name).method for name in named} == named
    videos = [tiny(method=method).clip(0)["video"] for method in ("fast", QUICK, "procedural")]
    assert torch.equal(tiny(method=FastSettings()).clip(0)["video"], videos[0])
    videos.append(tiny(method=FastSettings(steps=2)).clip(0)["video"])
    for number, video in enumerate(videos):
        assert not any(torch.equal(video, other) for other in videos[:number])


def test_a_model_without_the_papers_networks_has_all_other_methods(tiny, tiny_generator, tmp_path):
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
def test_varied_clips_hold_together_and_are_others(tiny, method):
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


def test_synthetic_videos_refuses_too_many_nuclei_and_names_the_number(tiny):
    dataset, roomy = (tiny(nuclei=3, max_cells=rows, frames=6) for rows in (3, 40))
    needed = [int((roomy.clip(n)["tracks"][:, 0] > 0).sum()) for n in range(4)]
    index, number = int(np.argmax(needed)), max(needed)
    assert number > 3
    words = rf"max_cells=3 is too small .*holds {number} nuclei.*Give max_cells={number} or more"
    with pytest.raises(TooManyNucleiError, match=words):
        dataset.clip(index)


def test_synthetic_videos_refuses_nuclei_that_do_not_fit(tiny):
    with pytest.raises(ValueError, match=r"nuclei=200 do not fit into size=\(48, 56\)"):
        tiny(nuclei=200, max_cells=500).clip(0)


@pytest.mark.parametrize("index", [-1, -(10**30)])
def test_clip_refuses_a_negative_index(tiny, index):
    with pytest.raises(IndexError, match=f"index must be 0 or more, got {index}"):
        tiny().clip(index)


def test_length_ends_the_iteration_and_is_no_limit_for_clip(tiny):
    clip = tiny(length=1).clip(3)
    assert torch.equal(clip["video"], tiny().clip(3)["video"])


def test_a_finite_stream_in_a_longer_mix_goes_on(tiny):
    mix = MixedVideos({"a": tiny(length=1), "b": tiny(length=1, seed=1)}, length=5)
    assert [int(clip["index"]) for clip in mix] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("index", [1.0, "1", None, True])
def test_clip_refuses_what_is_no_whole_number(tiny, index):
    with pytest.raises(TypeError, match="index must be a whole number, got"):
        tiny().clip(index)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 0}, "frames must be 1 or more, got 0"),
        ({"size": (64, 0)}, "size must be 1 or more, got 0"),
        ({"size": (64, 64, 64)}, r"two numbers, .*got \(64, 64, 64\)"),
        (
            {"size": (64, 15)},
            r"size must not be smaller than a nucleus .*\(16 px across\), got \(64, 15\)",
        ),
        ({"length": 0}, "length must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"max_cells": 0}, "max_cells must be 1 or more, got 0"),
        ({"annotations": ("mask",)}, r"annotations must be out of .*got 'mask'"),
        ({"model": "no such model"}, "no weights called 'no such model'; there are:"),
        (
            {"method": "magic"},
            "method must be one of 'fast', 'paper', 'procedural', or FastSettings, .* got 'magic'",
        ),
        ({"variation": -0.1}, r"variation must be from 0 to 1, got -0\.1"),
        ({"variation": 1.1}, r"variation must be from 0 to 1, got 1\.1"),
        ({"variation": float("nan")}, "variation must be from 0 to 1, got nan"),
        ({"nuclei": -1}, "nuclei must be 0 or more, got -1"),
        ({"nuclei": (4, 2)}, r"\(low, high\) with low <= high, got \(4, 2\)"),
        ({"nuclei": (1, 2, 3)}, r"a number or a pair \(low, high\), got \(1, 2, 3\)"),
        ({"nuclei": 25}, "nuclei must be at most max_cells=24, got 25; give a larger max_cells"),
        ({"nuclei": (3, 25)}, r"nuclei must be at most max_cells=24, got \(3, 25\)"),
        ({"device": "toaster"}, "device must be one that torch knows, got 'toaster'"),
        ({"device": 1.5}, "device must be one that torch knows, got 1.5"),
    ],
)
def test_synthetic_videos_refuses_values_out_of_range(tiny, changes, words):
    with pytest.raises(ValueError, match=words):
        tiny(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": True}, "frames must be a whole number, got True"),
        ({"frames": 8.0}, r"frames must be a whole number, got 8\.0"),
        ({"size": "64"}, "size must be .*got '64'"),
        ({"length": "3"}, "length must be a whole number, got '3'"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"model": 3}, "model must be a name or the path of a file, got 3"),
        ({"method": None}, "method must be a name, FastSettings, PaperSettings or .*, got None"),
        ({"variation": "1"}, "variation must be a number from 0 to 1, got '1'"),
        ({"variation": True}, "variation must be a number from 0 to 1, got True"),
        ({"nuclei": 2.5}, r"nuclei must be a whole number, got 2\.5"),
        ({"nuclei": (1, None)}, "nuclei must be a whole number, got None"),
        ({"annotations": "masks"}, "got the string 'masks'"),
        ({"max_cells": 1.5}, r"max_cells must be a whole number, got 1\.5"),
        ({"transform": 3}, "transform must be a callable .*got 3"),
    ],
)
def test_synthetic_videos_refuses_the_wrong_type(tiny, changes, words):
    with pytest.raises(TypeError, match=words):
        tiny(**changes)


def test_synthetic_videos_refuses_a_missing_file(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no model file .*missing\.safetensors"):
        tiny(model=tmp_path / "missing.safetensors")


def test_set_epoch_refuses_a_negative_number(tiny):
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        tiny().set_epoch(-1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_synthetic_videos_refuses_cuda_where_there_is_none(tiny):
    with pytest.raises(ValueError, match="device='cuda' asks for CUDA, but torch finds none"):
        tiny(device="cuda")


def test_a_worker_refuses_another_device_than_the_cpu(tiny):
    dataset = tiny(length=1, device="meta")
    with pytest.raises(RuntimeError, match="num_workers must be 0 when device is 'meta'"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_clips_made_with_cuda_stay_there_and_hold_together(tiny):
    clip = tiny(device="cuda", annotations=ANNOTATIONS).clip(0)
    assert all(value.device.type == "cuda" for value in clip.values())
    check_clip(clip)
    other = tiny(annotations=ANNOTATIONS).clip(0)
    assert torch.equal(clip["masks"].cpu(), other["masks"])
    torch.testing.assert_close(clip["video"].cpu(), other["video"], rtol=0, atol=0.02)
