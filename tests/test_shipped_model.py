import numpy as np
import pytest
import torch
from scipy import ndimage

from bvdm_data import FastSettings, PaperSettings, SyntheticHeLaVideos, check_clip
from bvdm_data.clip import ANNOTATIONS
from bvdm_data.synth import synthesis
from bvdm_data.synth.motion import simulate_motion
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.weights import bundled_folder, load, read_card

QUICK = PaperSettings(first_steps=20, later_steps=2)


def test_card_records_the_recipes():
    card = read_card("hela")
    assert card["data"]["data_set"] == "Fluo-N2DL-HeLa"
    assert (card["data"]["sequence"], card["data"]["frames"]) == ("01", 92)
    assert (card["started_from"], card["taken_over"]) == (None, ["networks of the paper's method"])
    for part, steps, batch, rate in [
        ("painter", 10_000, 32, 1e-3),
        ("distilled", 8_000, 64, 1e-3),
        ("texture", 10_000, 32, 5e-4),
        ("flow", 2_000, 32, 1e-4),
    ]:
        assert [card[part][key] for key in ("steps", "batch", "rate")] == [steps, batch, rate]
    assert card["flow"]["overlap_after"] > 0.98 > card["flow"]["overlap_before"]
    losses = {part: card[part]["held_out_loss"] for part in ("texture", "painter", "distilled")}
    assert losses["texture"][-1] < 0.5 * losses["texture"][1]
    assert losses["painter"][-1] < 0.8 * losses["painter"][0]
    assert losses["distilled"][-1] < 0.01
    assert (bundled_folder() / "hela.safetensors").stat().st_size < 9e6


@pytest.mark.parametrize("method", ["fast", QUICK], ids=["fast", "paper"])
def test_shipped_clips_are_consistent(method):
    videos = SyntheticHeLaVideos(frames=4, size=(160, 192), method=method, annotations=ANNOTATIONS)
    for index in range(2):
        check_clip(videos.clip(index))


@pytest.mark.parametrize(("method", "variation"), [("fast", 1), ("fast", 0), ("procedural", 1)])
def test_nothing_leaps_or_steals(method, variation):
    longest = load("hela").motion.longest_step
    assert longest == pytest.approx(33.05, abs=0.2)  # as the video has it
    videos = SyntheticHeLaVideos(method=method, variation=variation, annotations=("masks",))
    for index in range(4):
        check_clip(videos.clip(index), longest_step=longest)


def test_mitosis_shows_as_in_video():
    model, last, first = load("hela"), [], []
    for seed in range(8):
        paths = simulate_motion(
            model.shapes, model.lives, model.motion, families=True, frames=24, size=(512, 512),
            nuclei=None, generator=np.random.default_rng(seed),
        )  # fmt: skip
        last += [path.cell.stages[-1] for path in paths if path.cell.divides]
        first += [path.cell.stages[0] for path in paths if path.cell.parent]
    # Shares of mothers that end, and of newborn that begin, in interphase.
    lives = model.lives
    for stages, seen in ((last, lives.pro_metaphase_frames), (first, lives.ana_telophase_frames)):
        share = (seen.sum(1) == 0).mean()
        error = np.sqrt(share * (1 - share) * (1 / len(stages) + 1 / len(seen)))
        assert len(stages) > 80
        assert np.mean(np.array(stages) == 0) == pytest.approx(share, abs=3 * error)


def test_denoiser_fills_the_outlines():
    settings = SceneSettings(frames=1, size=(320, 320), nuclei=30)
    film = synthesise(load("hela"), settings, FastSettings(), seed=1, name=("clip", 0, 0))
    video, masks = film.video[0], film.masks[0]
    dark = np.median(video[ndimage.distance_transform_edt(masks == 0) > 10])
    alone = ndimage.distance_transform_edt(masks == 0, return_distances=False, return_indices=True)
    overlaps = []
    for identity in np.unique(masks)[1:]:
        own = masks == identity
        near = (masks[tuple(alone)] == identity) & (ndimage.distance_transform_edt(~own) < 6)
        half = dark + (np.median(video[own]) - dark) / 2
        lit = near & (video > half)
        overlaps.append((lit & own).sum() / (lit | own).sum())
    assert len(overlaps) == 30
    # A disc as large as a nucleus that is 3 px beside its label has 0.7.
    assert np.median(overlaps) > 0.78


def test_ddpm_removes_noise():
    generator = load("hela")
    clean = torch.zeros(4, 1, 96, 96)
    clean[:, :, 36:60, 38:58] = QUICK.mask_level
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    # After 200 of 1,000 steps the noise has a standard deviation of .319.
    noisy = 0.9478 * clean + 0.319 * noise
    with torch.no_grad():
        found = generator.unet(noisy, torch.tensor([199]))
    assert float((found - noise).square().mean()) < 0.1


@pytest.mark.parametrize(
    "method",
    [
        # The noise stays, but each outline is painted anew and light of neighbours is added.
        FastSettings(memory=1.0, fresh=0.0),
        # Nothing but the warp changes the light.
        PaperSettings(first_steps=20, later_steps=0),
    ],
    ids=["fast", "paper"],
)
def test_flow_follows_the_light(monkeypatch, method):
    seen, original = {}, synthesis._composite_scene

    def composite(*given, **how):
        seen["light"] = original(*given, **how)
        return seen["light"].clone()  # the camera works in place

    monkeypatch.setattr(synthesis, "_composite_scene", composite)
    settings = SceneSettings(frames=3, size=(200, 200), nuclei=8, flow=True)
    film = synthesise(load("hela"), settings, method, seed=0, name=("clip", 0, 0))
    followed, resting = [], []
    y, x = np.indices((200, 200))
    for frame in range(2):
        dy, dx = film.flow[frame]
        there = ndimage.map_coordinates(seen["light"][frame + 1], [y + dy, x + dx], order=1)
        for identity in np.unique(film.masks[frame])[1:]:
            core = ndimage.binary_erosion(film.masks[frame] == identity, iterations=3)
            ends = np.stack([y + dy, x + dx])[:, core]
            if core.sum() < 60 or not dy[core].any() or ends.min() < 0 or ends.max() > 199:
                continue
            if (film.masks[frame + 1][tuple(ends.round().astype(int))] != identity).any():
                continue  # a brighter nucleus is in front
            here = seen["light"][frame][core]
            followed.append(np.corrcoef(there[core], here)[0, 1])
            resting.append(np.corrcoef(seen["light"][frame + 1][core], here)[0, 1])
    assert len(followed) >= 8
    assert np.median(followed) > 0.9
    assert np.min(followed) > 0.8
    assert np.median(followed) > np.median(resting) + 0.1
