"""The compiled loops over pixels, against torch, which does their work where they are missing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bvdm_data import pixels
from bvdm_data.clip import measure_boxes
from bvdm_data.datasets.synthetic import PoolSettings, SyntheticHeLaVideos
from bvdm_data.pixels import find_library, has_loops, run_loop
from bvdm_data.synth.camera import expose, make_gaussian_kernels, make_normal
from bvdm_data.synth.denoiser import Student, StudentConfig
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.render import compute_flow, draw_labels, make_cell_table
from bvdm_data.synth.synthesis import _composite_scene, draw_scene
from bvdm_data.synth.textures import FastSettings
from tests.helpers.rendering import add_up, is_same, make_videos
from tests.test_render import SIZE, draw_cells, draw_patches

compiled = pytest.mark.skipif(not has_loops(), reason="needs the compiled loops")


def without_loops(make, *given):
    with pixels.skip_loops():
        return make(*given)


def test_library_is_of_this_source():
    assert has_loops() == find_library().is_file()


@compiled
@pytest.mark.parametrize("sizes", [(1.5, 6), (4, 14), (10, 30)])
def test_labels_and_flow_equal_torch(sizes):
    moving = 0
    for seed in range(4):
        table = make_cell_table(draw_cells(16, seed=seed, sizes=sizes), 3)
        (labels, shown), wanted = draw_labels(table, SIZE), without_loops(draw_labels, table, SIZE)
        assert torch.equal(labels, wanted[0])
        assert torch.equal(shown, wanted[1])
        flow, slow = compute_flow(table, labels), without_loops(compute_flow, table, labels)
        torch.testing.assert_close(flow, slow, rtol=0, atol=3e-5)
        moving += bool(flow.any())
    assert moving >= 2


@compiled
def test_flow_keeps_digits_in_wide_images():
    videos = SyntheticHeLaVideos(frames=2, size=(40, 8192), annotations="all", video=False)
    flow = videos.clip(0)["flow"]
    assert flow.any()
    slow = without_loops(videos.clip, 0)["flow"]
    torch.testing.assert_close(flow, slow, rtol=0, atol=3e-5)


@pytest.mark.skipif(not has_loops("paint"), reason="needs the compiled network")
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("size", [(16, 16), (48, 40), (24, 64)])
@pytest.mark.parametrize("channels", [(16, 32, 32), (3, 20, 8)])
@torch.no_grad()
def test_student_equals_torch(channels, size, count):
    torch.manual_seed(0)
    student = Student(StudentConfig(channels=channels, condition_channels=12))
    for weight in student.parameters():
        weight.copy_(torch.randn_like(weight) * weight[0].numel() ** -0.5)
    student.pack()
    stage, brightness = torch.arange(count) % 6, torch.rand(count) + 0.1
    given = (torch.randn(count, 1, *size), 99 * torch.randn(count, 1, *size), brightness, stage)
    wanted = without_loops(student, *given)
    # The sums of large numbers may be small: the scale is that of the image.
    assert wanted.std() > 10
    assert (student(*given) - wanted).abs().max() < 5e-5 * wanted.std()


@pytest.fixture
def without_paint(monkeypatch):
    """Hide the loop that draws nuclei, which not every compiler knows."""
    names = pixels._read_declarations().keys() - {"paint"}
    loops = {name: getattr(pixels._LIBRARY, name) for name in names}
    monkeypatch.setattr(pixels, "_LIBRARY", SimpleNamespace(**loops))
    assert has_loops()
    assert not has_loops("paint")


@compiled
def test_loop_without_memory_is_an_error():
    nothing = [torch.zeros(0, dtype=kind) for kind in (*[torch.int64] * 2, *[torch.float32] * 3)]
    with pytest.raises(MemoryError, match="no memory is left for the loop add_patches"):
        pixels.run_loop("add_patches", 1, 1, 0, 2**25, 2**25, 1, *nothing)


@compiled
@torch.no_grad()
def test_shipped_light_equals_torch(request):
    videos = SyntheticHeLaVideos(frames=3, size=128, nuclei=6)
    model, method = videos._load_model(), videos.method
    scene = draw_scene(model, videos._scene(()), method, **videos._place(1))

    def render():
        patches = method.render_textures(scene, model).patches
        return _composite_scene(scene, patches, masked=False)

    light, slow = render(), without_loops(render)
    torch.testing.assert_close(light, slow, rtol=0, atol=1e-4)
    assert light.max() > 0.1
    request.getfixturevalue("without_paint")
    torch.testing.assert_close(light, render(), rtol=0, atol=1e-4)


@compiled
def test_light_equals_torch():
    cells = draw_cells(10, seed=2)
    table = make_cell_table(cells, 3)
    groups = [draw_patches(cells, 3, 48, 0), draw_patches(cells, 3, 64, 1, zoom=1.3)]
    light = add_up(table, groups, SIZE)
    torch.testing.assert_close(light, without_loops(add_up, table, groups, SIZE), rtol=0, atol=1e-4)
    assert light.max() > 1


@compiled
@pytest.mark.parametrize("size", [(40, 56), (7, 61), (3, 2), (1, 1)])
def test_camera_equals_torch(tiny_camera, size):
    light, noise = torch.rand(2, 3, *size), tiny_camera.noise * torch.tensor([1.0, 3.0])

    def photograph(blur):
        normal = make_normal(torch.tensor([0, 1]))
        video = light.clone()
        expose(video, tiny_camera, normal, noise=noise, blur=blur)
        return video

    for blur in (None, make_gaussian_kernels([0.6, 0])):
        video, slow = photograph(blur), without_loops(photograph, blur)
        torch.testing.assert_close(video, slow, rtol=0, atol=1.01 / 4095)
        assert (video != slow).sum() <= 1 + video.numel() / 1000


PAPER = PaperSettings(first_steps=2, later_steps=1)
LIKE_02 = {"nuclei": None, "size": (150, 170), "max_cells": 256}
KINDS = [
    {"frames": 24, "max_cells": 512}, {"frames": 1}, {"size": (17, 90)},
    {"nuclei": 9, "size": (60, 64)}, {"nuclei": 0}, {"variation": 1}, LIKE_02,
    {"pool": PoolSettings(pairs=2)}, {"method": "procedural"},
    {"method": FastSettings(steps=2)}, {"method": FastSettings(families=False)},
    {"method": PAPER, "nuclei": 3},
    {"drift": 1.0, "jumps": (0.5, 6)}, {"outline": 0.975},
]  # fmt: skip


@compiled
@pytest.mark.parametrize("changes", KINDS, ids=repr)
def test_clips_equal_those_of_torch(tiny_model, changes):
    videos, others = (make_videos(tiny_model, **{"nuclei": 6} | changes) for _ in range(2))
    for number in range(2):
        clip, slow = videos.clip(number), without_loops(others.clip, number)
        for key, most in (("video", 1.01 / 4095), ("flow", 3e-5)):
            torch.testing.assert_close(clip.pop(key), slow.pop(key), rtol=0, atol=most)
        assert is_same(clip, slow)


@pytest.mark.parametrize(
    "index",
    [
        torch.zeros(2, 2).long().T,
        np.zeros((2, 2), np.int64).T,
        torch.zeros(4).int(),
        torch.zeros(4, dtype=torch.int64, device="meta"),
    ],
)
def test_loops_refuse_other_arrays(index):
    with pytest.raises(ValueError, match="takes contiguous int64, got"):
        run_loop("draw_numbers", 4, 1, index, torch.zeros(4).long(), torch.zeros(9), torch.zeros(4))


@compiled
def test_boxes_equal_numpy():
    masks = np.random.default_rng(0).integers(0, 7, (3, 20, 30), dtype=np.uint16)
    masks[1, masks[1] == 4] = 0
    boxes, centroids = measure_boxes(masks, 8)
    wanted = without_loops(measure_boxes, masks, 8)
    np.testing.assert_array_equal(boxes, wanted[0])
    np.testing.assert_array_equal(centroids, wanted[1])
    assert (
        np.isfinite(boxes).all((1, 2)).tolist() == [True] * 3 + [False] + [True] * 2 + [False] * 2
    )
