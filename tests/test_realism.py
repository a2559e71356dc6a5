import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import ndimage

from bvdm_data.clip import STAGES
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.evaluation.realism import (
    QUANTITIES,
    compare_metrics,
    measure_clips,
    measure_edges_by_light,
)
from tests.helpers.films import as_clip, draw_film

PAIRS = 30


def measured(clips):
    return measure_clips([clips] if isinstance(clips, dict) else clips, pairs=PAIRS)


def by_name(lines):
    return {line.name: line for line in lines}


@pytest.fixture(scope="module")
def reference():
    return draw_film(0.7, frames=8, seed=0)


@pytest.fixture(scope="module")
def real_films(reference):
    return measured(reference), measured(draw_film(0.7, frames=8, seed=1))


def rows_against(clip, real_films):
    return by_name(compare_metrics(measured(clip), *real_films))


def test_identical_films_have_no_distance(real_films):
    lines = compare_metrics(real_films[0], *real_films)
    assert [line.name for line in lines] == [one.name for one in QUANTITIES]
    assert {line.distance for line in lines} <= {0.0, None}
    found = by_name(lines)
    assert found["area"].ratio == 0
    assert found["area"].yardstick > 0
    assert compare_metrics(real_films[1], *real_films)[0].ratio == 1


def video_of(clip):
    return clip["video"][:, 0].numpy()


def changed(clip, video=None, masks=None):
    video = video_of(clip) if video is None else video
    masks = clip["masks"].numpy() if masks is None else masks
    return as_clip(video, masks, clip["tracks"].numpy())


def blurred(clip):
    return changed(clip, np.stack([ndimage.gaussian_filter(f, 1.5) for f in video_of(clip)]))


def flattened(clip):
    video = video_of(clip).copy()
    for image, masks in zip(video, clip["masks"].numpy(), strict=True):
        means = ndimage.mean(image, masks, np.arange(masks.max() + 1))
        image[masks > 0] = means[masks[masks > 0]]
    return changed(clip, video)


def shrunken(clip):
    masks = clip["masks"].numpy()
    return changed(clip, masks=np.where(ndimage.minimum_filter(masks, (1, 5, 5)) > 0, masks, 0))


def shifted(clip):
    return changed(clip, masks=np.roll(clip["masks"].numpy(), 4, axis=2))


def brighter(clip):
    return changed(clip, video_of(clip) * 2.5)


def noisier(clip):
    draws = np.random.default_rng(0)
    return changed(clip, video_of(clip) + 0.004 * draws.standard_normal(clip["masks"].shape))


def shaken(clip):
    shifts = [(0, 6 * (frame % 2)) for frame in range(len(clip["masks"]))]
    video = [np.roll(f, s, (0, 1)) for f, s in zip(video_of(clip), shifts, strict=True)]
    masks = [np.roll(m, s, (0, 1)) for m, s in zip(clip["masks"].numpy(), shifts, strict=True)]
    return changed(clip, np.stack(video), np.stack(masks))


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (blurred, ["edge profile", "fall of light across the edge", "power below 4 px"]),
        (flattened, ["contrast inside"]),
        (shrunken, ["area", "label agreement", "edge profile"]),
        (shifted, ["label agreement", "fall of light across the edge"]),
        (brighter, ["brightness", "background level", "brightness, dim end (5 %)"]),
        (noisier, ["noise", "power below 4 px"]),
        (shaken, ["step", "turning angle"]),
    ],
)
def test_damage_is_farther_than_another_video(damage, names, reference, real_films):
    found = rows_against(damage(reference), real_films)
    for name in names:
        assert found[name].distance > 2 * found[name].yardstick, name
        assert found[name].ratio > 2


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_texture_over_time_counts_both_ways(kept, real_films):
    found = rows_against(draw_film(kept, frames=8, seed=0), real_films)
    assert found["texture after 1 frames"].ratio > 2
    assert found["texture kept after 1 frames"].ratio > 2


def test_damage_of_real_video_shows(hela):
    def window(sequence, start):
        videos = CTCVideos(
            hela, sequence=sequence, frames=3, size=(320, 480), start=start, stop=start + 3
        )
        return videos.clip(0)

    first = window("01", 70)
    films = measured(first), measured(window("01", 30))
    assert rows_against(blurred(first), films)["fall of light across the edge"].ratio > 2
    assert rows_against(shifted(first), films)["label agreement"].ratio > 2


def test_dim_and_bright_ends_are_quantiles(real_films):
    values = real_films[0].values
    for name, share in (("dim end (5 %)", 0.05), ("bright end (95 %)", 0.95)):
        known = np.quantile(values["brightness"], share)
        assert values[f"brightness, {name}"].tolist() == [known]


def test_lines_are_ready_for_json(real_films):
    lines = compare_metrics(real_films[0], *real_films)
    again = json.loads(json.dumps([asdict(line) for line in lines], allow_nan=False))
    assert again[0]["synthetic"].keys() == {"count", "median", "low", "high", "curve"}
    found = by_name(lines)
    area = found["area"].reference
    assert area.low < area.median < area.high
    assert area.count == 72
    assert len(found["edge profile"].reference.curve) == 8
    assert found["noise"].reference.low is None
    assert found["noise"].measure == "abs. difference"


def test_missing_metrics_are_not_compared(real_films):
    found = by_name(compare_metrics(real_films[0], *real_films))
    for name in ("cycle length", "dip at mitosis", "share in interphase"):
        assert found[name].distance is found[name].ratio is found[name].synthetic.median is None
    assert found["division rate"].synthetic.median == 0


def test_many_clips_are_one_film(reference):
    once, again = measured(reference), measured(reference)
    assert all(np.array_equal(once.values[name], again.values[name]) for name in once.values)
    twice = measured([reference, reference])
    assert len(twice.values["area"]) == 2 * len(once.values["area"])
    for name in ("density", "share in contact", "division rate", "noise"):
        assert twice.values[name] == pytest.approx(once.values[name])
    assert twice.counts["density"] == 2 * once.counts["density"]


def test_stages_are_counted_and_judged(reference):
    stages = torch.full((16, 8), -1, dtype=torch.int8)
    stages[:9] = 0
    stages[:3] = STAGES.index("metaphase")
    found = measured({**reference, "stages": stages}).values
    assert found["share in metaphase"] == pytest.approx([1 / 3])
    assert found["share in interphase"] == pytest.approx([2 / 3])
    assert found["share in anaphase"].tolist() == [0]
    assert len(found["label agreement, metaphase"]) == 24


def test_density_counts_edge_nuclei_half():
    masks = np.zeros((1, 100, 100), np.int32)
    masks[0, :20, :20] = 1
    masks[0, 40:60, 40:60] = 2
    clip = as_clip(np.zeros(masks.shape), masks, [(1, 0, 0, 0), (2, 0, 0, 0)])
    assert measured(clip).values["density"].tolist() == [15]


def test_film_without_nuclei_is_measured():
    noise = 0.07 + 0.002 * np.random.default_rng(0).standard_normal((2, 64, 64))
    found = measured(as_clip(noise, np.zeros(noise.shape), np.zeros((4, 4))))
    assert found.values["density"].tolist() == [0]
    assert len(found.values["area"]) == 0
    assert compare_metrics(found, found, found)[0].distance is None


def draw_edges(share, clips=6):
    """Return clips of nine discs of many brightnesses; share(light) is the light of their rim."""
    y, x = np.mgrid[:120, :120]
    for number in range(clips):
        grey, masks = np.zeros((120, 120)), np.zeros((120, 120), np.int32)
        light = 0.05 * 1.3 ** np.random.default_rng(number).permutation(9)
        for cell, core in enumerate(light):
            radius = np.hypot(y - 20 - 40 * (cell // 3), x - 20 - 40 * (cell % 3))
            masks[radius < 12] = cell + 1
            level = share(core, number)
            grey += core * np.where(radius < 10, 1, np.where(radius < 12, level, 0))
        yield as_clip(grey[None], masks[None], [(n, 0, 0, 0) for n in range(1, 10)])


def test_edges_show_bias_and_spread():
    even = measure_edges_by_light([*draw_edges(lambda light, clip: 0.5)])
    assert (even.nuclei, even.spread) == (54, pytest.approx(0, abs=0.005))
    assert even.slope == pytest.approx(0, abs=0.005)
    steep = measure_edges_by_light([*draw_edges(lambda light, clip: 0.5 - 0.1 * np.log(light))])
    assert steep.slope == pytest.approx(-0.1, rel=0.25)
    assert steep.slope_error < 0.02
    loose = measure_edges_by_light([*draw_edges(lambda light, clip: 0.4 + 0.02 * clip)])
    known = even.share / 0.5 * np.std(0.02 * np.arange(6), ddof=1)
    assert loose.spread == pytest.approx(known, rel=0.3)
    assert np.isnan(measure_edges_by_light([*draw_edges(lambda light, clip: 0.5, clips=2)]).slope)
