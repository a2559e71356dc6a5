import pickle

import numpy as np
import pytest
import torch
from mixes import FakeVideos, own_number
from torch.utils.data import DataLoader

from bvdm_data.clip import CameraScale
from bvdm_data.datasets.mixed import BLOCK, MixedVideos


def a_mix(length=None, weights=None, seed=0):
    sources = {"real": FakeVideos(kind=0), "synthetic": FakeVideos(kind=1)}
    return MixedVideos(sources, weights=weights, length=length, seed=seed)


def origins(mix, numbers):
    clips = [mix.clip(number) for number in numbers]
    return [(int(clip["source"]), own_number(clip)) for clip in clips]


def test_mixed_videos_skip_and_repeat_no_clip_of_a_source_across_blocks():
    found = origins(a_mix(), range(BLOCK - 300, BLOCK + 300))
    for kind in (0, 1):
        own = [number for source, number in found if source == kind]
        assert own == list(range(own[0], own[0] + len(own)))


def test_mixed_videos_begin_every_source_with_its_clip_0():
    found = origins(a_mix(), range(50))
    assert (0, 0) in found
    assert (1, 0) in found


def test_mixed_videos_number_the_clips_themselves():
    assert [int(a_mix().clip(number)["index"]) for number in (0, 7, 3000)] == [0, 7, 3000]


def test_mixed_videos_leave_the_clip_of_the_source_as_it_was():
    kept = FakeVideos().clip(0)
    source = FakeVideos()
    source.clip = lambda index: kept
    MixedVideos({"only": source}).clip(9)
    assert int(kept["index"]) == 0


def test_a_mixed_clip_does_not_depend_on_what_was_asked_before():
    numbers = [5 * BLOCK + 3, 0, 2 * BLOCK, 17, 5 * BLOCK + 3]
    one_by_one = [origins(a_mix(), [number])[0] for number in numbers]
    assert origins(a_mix(), numbers) == one_by_one


def test_mixed_videos_pick_the_sources_as_often_as_their_weights_say():
    mix = a_mix(weights={"synthetic": 3, "real": 1})
    share = np.mean([kind for kind, _ in origins(mix, range(4000))])
    # Four standard errors of a share of .75 in 4000 draws.
    assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5)
    assert mix.weights == {"real": 0.25, "synthetic": 0.75}


def test_mixed_videos_never_pick_a_source_of_weight_0():
    assert {
        kind for kind, _ in origins(a_mix(weights={"real": 0, "synthetic": 2}), range(300))
    } == {1}


def test_mixed_videos_draw_all_sources_equally_often_when_no_weights_are_given():
    assert a_mix().weights == {"real": 0.5, "synthetic": 0.5}


def test_mixed_videos_of_another_seed_are_another_stream():
    assert origins(a_mix(seed=1), range(40)) != origins(a_mix(seed=2), range(40))


def test_set_epoch_changes_the_stream_and_reaches_the_sources():
    mix = a_mix()
    first = origins(mix, range(2 * BLOCK, 2 * BLOCK + 40))
    mix.set_epoch(3)
    assert int(mix.clip(0)["masks"].max()) == 3
    assert origins(mix, range(2 * BLOCK, 2 * BLOCK + 40)) != first
    mix.set_epoch(0)
    assert origins(mix, range(2 * BLOCK, 2 * BLOCK + 40)) == first


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_gives_every_mixed_clip_once_for_any_number_of_workers(workers):
    loader = DataLoader(a_mix(length=31), batch_size=None, num_workers=workers)
    found = {int(clip["index"]): (int(clip["source"]), own_number(clip)) for clip in loader}
    assert [found[number] for number in range(31)] == origins(a_mix(), range(31))
    assert len(list(loader)) == 31


def test_the_default_loader_makes_batches_of_mixed_clips():
    batch = next(iter(DataLoader(a_mix(), batch_size=3)))
    assert batch["video"].shape == (3, 2, 1, 4, 6)
    assert batch["index"].tolist() == [0, 1, 2]


def test_an_endless_mix_goes_on_and_has_no_length():
    stream = iter(a_mix())
    assert [int(next(stream)["index"]) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(TypeError, match=r"endless and has no len\(\); give it a length"):
        len(a_mix())


def test_a_mix_of_given_length_has_it_and_ends_there():
    assert len(a_mix(length=6)) == 6
    assert [int(clip["index"]) for clip in a_mix(length=6)] == list(range(6))


def test_a_mix_is_a_source_of_another_mix():
    outer = MixedVideos({"mix": a_mix(), "more": FakeVideos(kind=2)})
    assert {kind for kind, _ in origins(outer, range(60))} == {0, 1, 2}


def test_mixed_videos_are_pickled_and_say_the_same():
    mix = a_mix(seed=4)
    mix.clip(3 * BLOCK)
    assert origins(pickle.loads(pickle.dumps(mix)), range(30)) == origins(mix, range(30))


def test_mixed_videos_leave_the_global_random_states_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a_mix().clip(2 * BLOCK)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("frames", 3),
        ("size", (6, 4)),
        ("annotations", ("masks", "tracks")),
        ("max_cells", 6),
        ("scale", CameraScale(0, 4095)),
    ],
)
def test_mixed_videos_refuse_sources_that_differ_and_name_both_values(part, value):
    sources = {"a": FakeVideos(), "b": FakeVideos(), "c": FakeVideos(**{part: value})}
    with pytest.raises(
        ValueError, match=rf"same {part}: sources\['a'\] has .*sources\['c'\] has"
    ) as e:
        MixedVideos(sources)
    assert str(value) in str(e.value)
    assert str(getattr(FakeVideos(), part)) in str(e.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"real": 1}, r"names of the sources, \['real', 'synthetic'\], got \['real'\]"),
        ({"real": 1, "synthetic": 1, "x": 1}, r"got \['real', 'synthetic', 'x'\]"),
        ({"real": -1, "synthetic": 1}, r"weights\['real'\] must be finite and at least 0, got -1"),
        (
            {"real": 1, "synthetic": float("nan")},
            r"weights\['synthetic'\] must be finite .*got nan",
        ),
        ({"real": float("inf"), "synthetic": 1}, r"weights\['real'\] must be finite .*got inf"),
        ({"real": 0, "synthetic": 0}, "must not all be 0"),
    ],
)
def test_mixed_videos_refuse_weights_that_make_no_share(weights, message):
    with pytest.raises(ValueError, match=message):
        a_mix(weights=weights)


def test_mixed_videos_refuse_to_mix_nothing():
    with pytest.raises(ValueError, match="at least one data set, got none"):
        MixedVideos({})


def test_mixed_videos_refuse_a_source_without_clips_by_number():
    with pytest.raises(
        TypeError, match=r"sources\['x'\] must be a data set of clips.*list has no 'clip'"
    ):
        MixedVideos({"good": FakeVideos(), "x": [1, 2]})


def test_mixed_videos_refuse_sources_without_names():
    with pytest.raises(TypeError, match=r"must map names to data sets.*got list"):
        MixedVideos([FakeVideos()])


@pytest.mark.parametrize("arguments", [{"length": 0}, {"seed": -1}])
def test_mixed_videos_refuse_a_length_or_seed_out_of_range(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be .* or more, got"):
        a_mix(**arguments)


def test_mixed_videos_refuse_a_negative_index():
    with pytest.raises(IndexError, match="index must be 0 or more, got -1"):
        a_mix().clip(-1)


@pytest.mark.parametrize("index", [1.5, "1", True])
def test_mixed_videos_refuse_an_index_that_is_no_whole_number(index):
    with pytest.raises(TypeError, match="index must be a whole number, got"):
        a_mix().clip(index)
