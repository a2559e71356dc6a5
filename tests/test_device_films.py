"""Films that are painted together with torch: against those that numpy makes one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from bvdm_data.synth import device as painting
from bvdm_data.synth import render as laying
from bvdm_data.synth.camera import TorchCamera, derive_camera_seed, expose, make_gaussian_kernels
from bvdm_data.synth.cell_bank import CellBank, PoolSettings
from bvdm_data.synth.device import VideoRenderer, choose_batch_size, collate_scenes
from bvdm_data.synth.model import randomise_model
from bvdm_data.synth.render import (
    batch_patches,
    composite,
    composite_batch,
    count_padding_pixels,
    place_patches,
)
from bvdm_data.synth.scene import (
    SceneSettings,
    make_request,
    pickle_requests,
    render_request,
    simulate_scene,
    unpickle_requests,
)
from bvdm_data.synth.textures import FastSettings, RenderedPatches, run_denoiser_batched

CPU = torch.device("cpu")
STEPS = 4095
FAST = FastSettings()


class Replay:
    """Stands in for numpy's generator: gives numbers that were drawn before, in their order."""

    def __init__(self, numbers):
        self.numbers = numbers.double().numpy()

    def standard_normal(self, size=(), out=None):
        shape = np.shape(out) if out is not None else size
        count = int(np.prod(shape))
        taken, self.numbers = self.numbers[:count].reshape(shape), self.numbers[count:]
        if out is not None:
            out[...] = taken
        return taken if shape else float(taken)


def film_of(generator, index, *, method=FAST, size=(80, 90), pool=None, **changes):
    """Return the sketch of a film."""
    scene = SceneSettings(**{"frames": 3, "size": size, "nuclei": 4, "variation": 1.0} | changes)
    name = ("clip", 0, index)
    given = None if pool is None else (pool, index, 0)
    plan = simulate_scene(generator, scene, method, 0, name, given)
    return make_request(generator, plan, method, size, 0, name)


def paint(generator, sketches, *, method=FAST, pictures=64, pool=None):
    first = sketches[0]
    frames = first.tables.there.shape[1]
    painter = VideoRenderer(
        generator, method, frames, first.size, CPU, pictures=pictures, pool=pool
    )
    return painter.paint(collate_scenes(sketches))


@pytest.fixture
def quiet(tiny_generator):
    """A generator whose camera adds neither noise nor background of random height."""
    camera = replace(tiny_generator.camera, noise=0.0, field_spread=0.0, level_spread=0.0)
    return replace(tiny_generator, camera=camera)


def in_counts(one, other):
    """Return how many counts two videos are apart, pixel by pixel."""
    return np.rint(np.abs(np.asarray(one, float) - np.asarray(other, float)) * STEPS)


# The camera


def lit(count, frames, size, seed=0):
    draws = np.random.default_rng(seed)
    light = 0.2 * draws.random((count, frames, *size)) ** 3
    return light.astype(np.float32)


@pytest.mark.parametrize("streak", [3, 4, 9])
@pytest.mark.parametrize("size", [(40, 56), (7, 61), (3, 2)])
def test_with_the_same_numbers_the_camera_is_that_of_numpy(tiny_camera, size, streak):
    kernel = np.random.default_rng(3).random(streak)
    camera = replace(tiny_camera, streak=kernel / np.linalg.norm(kernel), level_spread=0.01)
    torch_camera = TorchCamera(camera, 3, size, CPU)
    light, widths, noise = lit(2, 3, size), (0.6, 0.0), (0.004, 0.02)
    drawn = torch_camera.draw([5, 6])
    found = torch_camera.expose(
        torch.from_numpy(light), drawn, torch.tensor(noise), make_gaussian_kernels(widths)
    )
    for number in range(2):
        blurred = light[number]
        if widths[number]:
            blurred = ndimage.gaussian_filter(blurred, (0, widths[number], widths[number]))
        level, rest = drawn[number, :1], drawn[number, 1:]
        field = torch_camera._shares[1]
        order = torch.cat([rest[:field], level, rest[field:]])
        wanted = expose(blurred, replace(camera, noise=noise[number]), Replay(order), glow=False)
        apart = in_counts(found[number], wanted)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01


def test_a_camera_without_noise_gives_the_bytes_of_numpy_but_where_rounding_falls_otherwise(
    tiny_camera,
):
    dark = replace(tiny_camera, level_spread=0.0, field_spread=0.0, noise=0.0)
    light = lit(1, 2, (64, 64)) * 6
    camera = TorchCamera(dark, 2, (64, 64), CPU)
    found = camera.expose(torch.from_numpy(light), camera.draw([0]), torch.zeros(1), None)[0]
    wanted = expose(light[0], dark, np.random.default_rng(0), glow=False)
    same = found.numpy() == wanted
    assert same.mean() > 0.999
    assert in_counts(found, wanted).max() <= 1
    assert found.max() == 1
    assert found.dtype == torch.float32


def test_the_camera_of_torch_has_the_law_of_that_of_numpy(tiny_camera):
    camera = replace(tiny_camera, field_spread=0.0, level_spread=0.0, noise=0.01)
    size, dark = (200, 300), np.zeros((2, 200, 300), np.float32)
    ours = TorchCamera(camera, 2, size, CPU)
    found = ours.expose(torch.from_numpy(dark)[None], ours.draw([1]), torch.tensor([0.01]), None)
    found, wanted = found[0].numpy(), expose(dark, camera, np.random.default_rng(1), glow=False)
    assert found.mean() == pytest.approx(wanted.mean(), rel=2e-3)
    assert found.std() == pytest.approx(wanted.std(), rel=0.02)

    def correlation(video, axis, lag):
        ahead, behind = np.moveaxis(video, axis, 0)[lag:], np.moveaxis(video, axis, 0)[:-lag]
        return np.corrcoef(ahead.ravel(), behind.ravel())[0, 1]

    for axis, lag in ((2, 1), (2, 2), (2, 3), (1, 1), (0, 1)):
        assert correlation(found, axis, lag) == pytest.approx(
            correlation(wanted, axis, lag), abs=0.02
        )
    assert correlation(found, 2, 1) > 0.3
    np.testing.assert_allclose(found * STEPS, np.rint(found * STEPS), atol=1e-3)


def test_the_background_of_torch_has_spread_and_width_of_that_of_numpy(tiny_camera):
    camera = replace(tiny_camera, noise=0.0, field_spread=0.02, field_width=12.0, level_spread=0.0)
    size, count = (160, 120), 8
    dark = np.zeros((1, *size), np.float32)
    ours = TorchCamera(camera, 1, size, CPU)
    light = torch.zeros(count, 1, *size)
    found = ours.expose(light, ours.draw(range(count)), torch.zeros(count), None)[:, 0].numpy()
    wanted = np.concatenate(
        [expose(dark, camera, np.random.default_rng(n), glow=False) for n in range(count)]
    )
    assert found.std() == pytest.approx(wanted.std(), rel=0.15)
    for lag in (6, 24):
        one, other = (
            np.corrcoef(v[:, lag:].ravel(), v[:, :-lag].ravel())[0, 1] for v in (found, wanted)
        )
        assert one == pytest.approx(other, abs=0.12)


def test_one_level_a_film_is_drawn_with_the_spread_of_the_video(tiny_camera):
    camera = replace(tiny_camera, level_spread=0.005, field_spread=0.0, noise=0.0)
    ours = TorchCamera(camera, 2, (2, 2), CPU)
    light = torch.zeros(300, 2, 2, 2)
    found = ours.expose(light, ours.draw(range(300)), torch.zeros(300), None)
    assert (found.flatten(1) == found[:, :1, 0, 0]).all()
    assert float(found[:, 0, 0, 0].std()) == pytest.approx(0.005, rel=0.15)


def test_what_the_camera_draws_is_a_function_of_seed_and_place_in_the_data_set(tiny_camera):
    ours = TorchCamera(tiny_camera, 2, (8, 8), CPU)
    names = [("clip", 0, 1), ("clip", 0, 2), ("clip", 1, 1)]
    seeds = [derive_camera_seed(0, name) for name in names] + [derive_camera_seed(1, names[0])]
    assert len(set(seeds)) == 4
    together, alone = ours.draw(seeds), ours.draw(seeds[2:3])
    assert torch.equal(together[2:3], alone)
    assert len({tuple(row[:4].tolist()) for row in together}) == 4


def test_taps_are_those_of_scipy(tiny_camera):
    assert make_gaussian_kernels([0.0, 0.0]) is None
    found = make_gaussian_kernels([0.7, 0.0, 0.3])
    assert found.shape == (3, 7)
    assert found[1].tolist() == [0, 0, 0, 1, 0, 0, 0]
    for row, width in ((0, 0.7), (2, 0.3)):
        point = np.zeros(41)
        point[20] = 1
        wanted = ndimage.gaussian_filter1d(point, width)[17:24]
        np.testing.assert_allclose(found[row], wanted, atol=1e-7)


def test_of_the_camera_variation_changes_nothing_but_the_noise(tiny_generator):
    models = tiny_generator
    given = (models.shapes, models.lives, models.motion, models.camera)
    varied = randomise_model(*given, 1.0, np.random.default_rng(0)).camera
    assert varied.noise != models.camera.noise
    assert replace(varied, noise=models.camera.noise) == models.camera


# Adding up


@pytest.mark.parametrize("most", [2**21, 4000])
def test_the_light_of_several_films_is_that_of_each(tiny_generator, most, monkeypatch):
    monkeypatch.setattr(laying, "WINDOW_PIXELS", most)
    method, size = FastSettings(), (80, 90)
    sketches = [film_of(tiny_generator, index, nuclei=6) for index in range(3)]
    wanted, parts = [], {}
    for number, sketch in enumerate(sketches):
        groups = run_denoiser_batched(sketch.groups, tiny_generator.distilled, method)
        wanted.append(composite(sketch.tables, groups, size))
        for group in groups:
            parts.setdefault(group.light.shape[-1], []).append((number, sketch.tables, group))
    layouts = {side: place_patches(some, side, size) for side, some in parts.items()}
    cells = 3 * 3 * 80 * 90
    total = torch.zeros(cells + count_padding_pixels(list(layouts.values())))
    for side, some in parts.items():
        light = torch.cat([group.light for _, _, group in some])
        composite_batch(total, light, layouts[side], (9, *size))
    found = total[:cells].view(3, 3, *size)
    assert len(layouts) == 2
    assert found.max() > 0.1
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-5, atol=1e-6)


def test_pictures_that_do_not_reach_into_the_film_are_left_out(tiny_generator):
    sketch = film_of(tiny_generator, 0)
    tables = replace(sketch.tables, centres=sketch.tables.centres + 1000)
    (pile, *_) = batch_patches([(tables, sketch.groups)], sketch.size)
    assert len(pile.noise) > 0
    assert pile.layout.blocks == ()
    assert len(pile.layout.order) == 0


def test_a_layout_takes_pictures_of_a_pool_as_well(tiny_generator):
    sketch = film_of(tiny_generator, 0)
    group = sketch.groups[0]
    side = group.noise.shape[-1]
    shown = RenderedPatches(group.noise, group.rows, group.moments, group.zoom)
    one = place_patches([(2, sketch.tables, shown)], side, sketch.size)
    assert int(one.frames.min()) >= 2 * sketch.tables.there.shape[1]
    assert sum(stop - start for start, stop, _ in one.blocks) == len(one.order)


# Whole films


@pytest.mark.parametrize(
    "method", [FastSettings(), FastSettings(steps=2), FastSettings(families=False)], ids=repr
)
def test_films_without_noise_are_those_of_the_cpu(quiet, method):
    sketches = [film_of(quiet, index, method=method) for index in range(3)]
    found = paint(quiet, sketches, method=method)
    assert found.shape == (3, 3, 1, 80, 90)
    for sketch, video in zip(sketches, found[:, :, 0], strict=True):
        apart = in_counts(video, render_request(sketch, quiet, method))
        assert (apart > 0).mean() < 0.01
        assert apart.max() <= 1
        assert video.max() - video.min() > 0.05


def test_films_of_a_pool_without_noise_are_those_of_the_cpu(quiet):
    kept, ours = (CellBank(PoolSettings(pairs=3, renew=1), 0) for _ in range(2))
    for first in (0, 3):
        sketches = [film_of(quiet, index, pool=kept) for index in range(first, first + 3)]
        found = paint(quiet, sketches, pool=ours)
        for sketch, video in zip(sketches, found[:, :, 0], strict=True):
            apart = in_counts(video, render_request(sketch, quiet, FastSettings()))
            assert (apart > 0).mean() < 0.01
            assert apart.max() <= 1
            assert video.max() - video.min() > 0.05


def test_a_film_does_not_depend_on_the_films_beside_it(tiny_generator):
    sketches = [film_of(tiny_generator, index) for index in range(4)]
    together = paint(tiny_generator, sketches, pictures=8)
    for number in (0, 3):
        alone = paint(tiny_generator, sketches[number : number + 1], pictures=8)
        assert torch.equal(alone[0], together[number])


def test_every_call_of_the_network_has_equally_many_pictures(tiny_generator, monkeypatch):
    real, calls = painting.paint_moments, []

    def noted(network, noise, *told, **how):
        calls.append({len(noise), *(len(numbers) for numbers in told)})
        return real(network, noise, *told, **how)

    monkeypatch.setattr(painting, "paint_moments", noted)
    sketches = [film_of(tiny_generator, index, nuclei=6) for index in range(3)]
    counts = [
        sum(len(group.noise) for sketch in sketches for group in sketch.groups if side(group) == s)
        for s in (32, 48)
    ]
    paint(tiny_generator, sketches, pictures=20)
    assert calls == [{20}] * sum(-(-count // 20) for count in counts)
    assert len(calls) < sum(len(sketch.groups) * 3 for sketch in sketches)


def side(group):
    return group.noise.shape[-1]


def test_films_without_a_nucleus_show_the_background(quiet):
    sketches = [film_of(quiet, index, nuclei=0, size=(40, 50)) for index in range(2)]
    assert not any(sketch.groups for sketch in sketches)
    found = paint(quiet, sketches)
    assert found.shape == (2, 3, 1, 40, 50)
    assert len(found.unique()) == 1


@pytest.mark.parametrize("pooled", [False, True])
def test_a_sketch_that_was_sent_is_painted_alike(tiny_generator, pooled):
    pool = CellBank(PoolSettings(pairs=3), 0) if pooled else None
    sketch = film_of(tiny_generator, 1, pool=pool)
    data = pickle_requests([sketch])
    # Neither networks nor painted pictures are sent.
    assert data.numel() < (40_000 if pooled else 40_000 + 4 * sum(
        group.noise.numel() for group in sketch.groups
    ))  # fmt: skip
    (sent,) = unpickle_requests(data)
    again = sent.attached(CellBank(PoolSettings(pairs=3), 0) if pooled else None, tiny_generator)
    one, other = (render_request(s, tiny_generator, FastSettings()) for s in (sketch, again))
    assert np.array_equal(one, other)


# Memory


@pytest.mark.parametrize(
    ("free", "wanted"), [(80 * 2**30, 256), (4 * 2**30, 128), (2**28, 16), (0, 16)]
)
def test_how_many_pictures_go_together_follows_the_memory_that_is_free(free, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert choose_batch_size(torch.device("cuda", 1)) == wanted


def test_on_the_cpu_the_number_of_pictures_is_a_constant():
    assert choose_batch_size(CPU) == 64
