"""Clips rendered in batches, against those that are made one by one."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from bvdm_data.synth import synthesis, textures
from bvdm_data.synth.cell_bank import CellBank, PoolSettings
from bvdm_data.synth.render import place_patches
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import (
    BatchRenderer,
    choose_batch_size,
    collate_scenes,
    draw_scene,
    synthesise,
)
from bvdm_data.synth.textures import FastSettings

CPU = torch.device("cpu")
FAST = FastSettings()


def draw(model, index, *, make=draw_scene, method=FAST, bank=None, **changes):
    usual = {"frames": 3, "size": (80, 90), "nuclei": 4, "variation": 1.0, "evenness": 0.5}
    pool, name = None if bank is None else (bank, index, 0), ("clip", 0, index)
    return make(model, SceneSettings(**usual | changes), method, seed=0, name=name, pool=pool)


def make(model, index, **changes):
    return draw(model, index, make=synthesise, **changes).video


def render(model, scenes, *, method=FAST, batch_size=64, bank=None):
    shape = (scenes[0].settings.frames, *scenes[0].settings.size)
    renderer = BatchRenderer(model, method, shape, CPU, batch_size=batch_size, bank=bank)
    # As a worker sends it.
    batch = pickle.loads(pickle.dumps(collate_scenes(scenes, method, model)))
    return renderer.render(batch)


@pytest.fixture
def quiet(tiny_generator):
    """A model whose camera adds neither noise nor background of random height."""
    camera = replace(tiny_generator.camera, noise=0.0, field_spread=0.0, level_spread=0.0)
    return replace(tiny_generator, camera=camera)


def check_same(videos, wanted):
    for video, other in zip(videos[:, :, 0].numpy(), wanted, strict=True):
        apart = np.rint(np.abs(video - other) * 4095)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01
        assert np.ptp(video) > 0.05


@pytest.mark.parametrize(
    "method", [FastSettings(), FastSettings(steps=2), FastSettings(families=False)], ids=repr
)
def test_batch_equals_single_clips_without_noise(quiet, method):
    videos = render(quiet, [draw(quiet, n, method=method) for n in range(3)], method=method)
    assert videos.shape == (3, 3, 1, 80, 90)
    check_same(videos, [make(quiet, n, method=method) for n in range(3)])


def test_bank_batch_equals_single_clips(quiet):
    banks = [CellBank(PoolSettings(pairs=3, renew=1), 0) for _ in range(3)]
    for first in (0, 3):
        numbers = range(first, first + 3)
        scenes = [draw(quiet, n, bank=banks[0]) for n in numbers]
        # Neither networks nor patches are sent.
        assert len(collate_scenes(scenes, FAST, quiet).samples) < 120_000
        videos = render(quiet, scenes, bank=banks[1])
        check_same(videos, [make(quiet, n, bank=banks[2]) for n in numbers])


def test_clip_does_not_depend_on_batch(tiny_generator):
    scenes = [draw(tiny_generator, index) for index in range(4)]
    together = render(tiny_generator, scenes, batch_size=8)
    for number in (0, 3):
        alone = render(tiny_generator, scenes[number : number + 1], batch_size=8)
        assert torch.equal(alone[0], together[number])


def test_network_calls_have_equal_size(tiny_generator, monkeypatch):
    real, calls = textures.denoise_patches, []

    def note(network, noise, *conditions, **how):
        calls.append({len(noise), *(len(numbers) for numbers in conditions)})
        return real(network, noise, *conditions, **how)

    monkeypatch.setattr(textures, "denoise_patches", note)
    scenes = [draw(tiny_generator, index, nuclei=6) for index in range(3)]
    inputs = [group for group, _ in collate_scenes(scenes, FAST, tiny_generator).groups]
    assert [group.size for group in inputs] == [(40, 32), (48, 40), (48, 48)]
    render(tiny_generator, scenes, batch_size=20)
    assert calls == [{20}] * sum(-(-len(group.rows) // 20) for group in inputs)


def test_clips_without_nuclei_show_background(quiet):
    scenes = [draw(quiet, n, nuclei=0, size=(40, 50), variation=0) for n in range(2)]
    assert not collate_scenes(scenes, FAST, quiet).groups
    assert len(render(quiet, scenes).unique()) == 1


def test_placement_skips_patches_out_of_view(tiny_generator):
    scene = draw(tiny_generator, 0)
    _, (group, *_) = FAST.make_inputs(scene, tiny_generator)
    table = replace(scene.table, centres=scene.table.centres + 1000)
    placement = place_patches([(0, table, group)], (80, 90))
    assert (len(group.places) > 0, placement.blocks, len(placement.order)) == (True, (), 0)
    placement = place_patches([(2, scene.table, group)], (80, 90))
    assert int(placement.frames.min()) >= 2 * 3
    assert sum(stop - start for start, stop, _ in placement.blocks) == len(placement.order) > 0


def test_batch_size_follows_free_memory(monkeypatch):
    for free, wanted in [(80 * 2**30, 256), (4 * 2**30, 128), (2**28, 16), (0, 16)]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 2 * free))
        assert choose_batch_size(torch.device("cuda", 1)) == wanted
    assert choose_batch_size(CPU) == synthesis.BATCH == 64
