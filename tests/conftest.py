"""Data that several tests share: the real video, where it is there, and a tiny made-up one."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special

from bvdm_data import weights
from bvdm_data.clip import PHASES
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.synth.camera import CameraModel
from bvdm_data.synth.cell_cycle import CellCycleModel
from bvdm_data.synth.contours import CONTOUR_POINTS, ShapeModel
from bvdm_data.synth.denoiser import Denoiser, DenoiserConfig, Student, StudentConfig
from bvdm_data.synth.model import Model
from bvdm_data.synth.motion import MotionModel, SpeedModel
from bvdm_data.synth.networks import FlowNet, UNet, UNetSettings
from bvdm_data.synth.textures import TextureModel

torch.set_num_threads(1)  # tests run side by side, one thread each

NAME = "Fluo-N2DL-HeLa"

# id, first frame, last frame, parent, (y, x) in frame 0, (dy, dx) a frame, radii (y, x).
# Nucleus 2 divides into 4 and 5, nucleus 3 leaves on the right, nucleus 6 enters at the bottom.
LIVES = [
    (1, 0, 11, 0, (40, 50), (0.5, 1.0), (9, 7)),
    (2, 0, 5, 0, (70, 90), (0.0, 0.5), (8, 10)),
    (3, 0, 7, 0, (30, 136), (0.3, 4.0), (7, 7)),
    (4, 6, 11, 2, (62, 90), (-0.8, 0.5), (6, 6)),
    (5, 6, 11, 2, (78, 90), (0.8, 0.5), (6, 6)),
    (6, 4, 11, 0, (146, 40), (-3.0, 0.2), (8, 8)),
]
FRAMES, HEIGHT, WIDTH = 12, 128, 160


@pytest.fixture(scope="session")
def hela():
    """Return the folder of the real data; skip the test where it is not there."""
    places = [Path(__file__).resolve().parents[2] / "shared" / "data" / NAME]
    if "BVDM_DATA_ROOT" in os.environ:
        places.insert(0, Path(os.environ["BVDM_DATA_ROOT"]) / NAME)
    for place in places:
        if place.is_dir():
            return place
    pytest.skip(f"needs {NAME} in the folder $BVDM_DATA_ROOT or at {places[-1]}")


@pytest.fixture(scope="session")
def tiny_video():
    """Return counts [12, 128, 160] uint16, masks int32 and tracks [6, 4] of six nuclei."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).normal(300, 9, (FRAMES, HEIGHT, WIDTH))
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), np.int32)
    for number, first, last, _, centre, speed, radii in LIVES:
        for frame in range(first, last + 1):
            down = (y - centre[0] - speed[0] * frame) / radii[0]
            right = (x - centre[1] - speed[1] * frame) / radii[1]
            inside = down**2 + right**2 < 1
            masks[frame][inside] = number
            noise[frame][inside] += 1500 + 100 * number
    video = (32768 + noise.clip(0, 4095)).astype(np.uint16)
    tracks = np.array([life[:4] for life in LIVES], np.int32)
    return video, masks, tracks


@pytest.fixture(scope="session")
def tiny_ctc(tiny_video, tmp_path_factory):
    """Return a data set's folder with the tiny video as sequence 01; do not change it."""
    root = tmp_path_factory.mktemp("tiny")
    write_sequence(root, "01", *tiny_video)
    return root


@pytest.fixture(scope="session")
def two_videos(tiny_video, tmp_path_factory):
    """Return a folder with the tiny video as 01 and, upside down, as 02; do not change it."""
    root = tmp_path_factory.mktemp("two")
    video, masks, tracks = tiny_video
    write_sequence(root, "01", video, masks, tracks)
    write_sequence(root, "02", video[:, ::-1], masks[:, ::-1], tracks)
    return root


# Half axes (y, x) of the mean outline of each stage, px: long plates, small daughters.
AXES = [(9, 7), (9, 7), (8, 7), (8, 4), (6, 4), (6, 5)]


@pytest.fixture(scope="session")
def tiny_shapes():
    """Return a model of ellipses whose four modes are half-turn symmetric waves."""
    angle = np.arange(CONTOUR_POINTS) * 2 * np.pi / CONTOUR_POINTS
    mean = [y * x / np.hypot(x * np.cos(angle), y * np.sin(angle)) for y, x in AXES]
    waves = [wave(n * angle) for n in (2, 4) for wave in (np.cos, np.sin)]
    modes = np.stack([np.array(waves) * size for size in (0.5, 0.5, 0.4, 0.3, 0.3, 0.3)])
    return ShapeModel(
        np.array(mean),
        modes,
        np.arange(20.0, 26.0),
        autocorrelation=np.array([0.95, 0.9, 0.8, 0.5]),
        innovation=np.array([0.1, 0.2, 0.5, 0.8]),
        area_jitter=0.02,
        roughness=np.array([0.9, 0.1]),
        elongation=special.ndtri(np.linspace(0.001, 0.999, 129)),
    )


@pytest.fixture(scope="session")
def tiny_lives():
    """Return lives of about 12 frames, so that divisions happen within a clip."""
    durations = np.zeros((len(PHASES), 4))
    durations[0, 1] = 1
    durations[1:] = [0.2, 0.6, 0.2, 0]
    offsets = [[0, 0.1], [0.1, 0.1], [0.2, 0.1], [0.5, 0.1], [0.4, 0.1], [0.2, 0.1]]
    return CellCycleModel(
        durations=durations,
        cycle=np.array([np.log(12), 0.2]),
        brightness=np.linspace(0.1, 0.3, 9),
        brightness_autocorrelation=0.98,
        brightness_sister_correlation=0.5,
        stage_brightness=np.array(offsets, float),
        sister_spread=0.05,
        mother_area=np.array([300.0, 400.0, 500.0]),
        area_of_age=np.array([0.4, 0.6, 0.8, 1.0]),
        area_of_stage=np.array([1.0, 1.0, 0.7, 0.5, 1.0, 1.0]),
        area_at_birth=np.array([1.0, 1.0, 1.0, 1.0, 0.3, 0.4]),
        division_asymmetry=0.05,
        division_asymmetry_robust=0.03,
        stage_spread=np.array([0.0, 0.1, 0.1, 0.1, 0.0, 0.0]),
        adult_area=np.array([300.0, 400.0, 500.0]),
        area_in_interphase=np.array([0.5, 0.6, 0.8, 1.0]),
        size=np.array([0.05, 0.9]),
        pro_metaphase_frames=np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [2.0, 1.0, 0.0]]),
        ana_telophase_frames=np.array([[1.0, 1.0], [0.0, 2.0]]),
        minutes=30.0,
    )


@pytest.fixture(scope="session")
def tiny_motion():
    """Return motion with heavy tails, at a density of about six nuclei in 96 x 96 pixels."""
    density = np.linspace(6e-4, 7e-4, 10)
    return MotionModel(
        np.array([1.0, 3.0]),
        0.1,
        np.array([np.log(12), 0.1]),
        density,
        speed=SpeedModel(1.0, 0.4, 0.9, 2.0, 4.0),
        speed_by_age=np.array([1.5, 1.5, 1.2, 1.0]),
        division_offset=1.0,
        longest_step=200.0,
        stage_drift=np.array([[0.5, -0.5]] * 9),
        sister_distance=np.array([[np.log(22), 0.2], [np.log(24), 0.2], [np.log(26), 0.3]]),
        neighbour_spacing=np.array([0.8, 0.85, 1.0, 1.5]),
    )


@pytest.fixture(scope="session")
def tiny_camera():
    """Return a camera of 12 bits on an offset, with noise that is correlated along rows."""
    streak = np.array([0.2, 0.9, 0.2])
    return CameraModel(
        level=0.05,
        level_spread=0.002,
        field_spread=0.005,
        field_width=24.0,
        noise=0.004,
        streak=streak / np.linalg.norm(streak),
        halo=2.0,
        offset=32768,
        full=36863,
    )


TINY_PAINTER = DenoiserConfig(patch=48, channels=(16, 16, 16), condition_channels=16)
TINY_DISTILLED = StudentConfig(patch=48, channels=(8, 8, 8), condition_channels=8)


def seeded(network, seed, spread):
    """Draw all weights anew, whatever the library's way of drawing them is."""
    generator = torch.Generator().manual_seed(seed)
    for value in network.parameters():
        value.data = spread * torch.randn(value.shape, generator=generator)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_generator(tiny_shapes, tiny_lives, tiny_motion, tiny_camera):
    """Return a made-up generator: ellipses, short lives, networks of random weights."""
    return Model(
        shapes=tiny_shapes,
        lives=tiny_lives,
        motion=tiny_motion,
        camera=tiny_camera,
        texture=TextureModel(memory=0.9, fresh=0.3),
        painter=seeded(Denoiser(TINY_PAINTER), 3, 0.1),
        distilled=seeded(Student(TINY_DISTILLED), 4, 0.1),
        unet=seeded(UNet(UNetSettings(channels=(8, 8, 8), middle=1)), 1, 0.1),
        flownet=seeded(FlowNet(), 2, 0.05),
        card={"data": "made up", "held_out": {"loss": 0.5}, "seeds": [1, 2]},
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_generator, tmp_path_factory):
    """Return the file of the made-up generator; do not change it."""
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    weights.save(tiny_generator, path)
    return path


@pytest.fixture(scope="module")
def short_wait():
    """Let PyTorch wait shorter for workers of a loader that is dropped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
        yield
        gc.collect()
