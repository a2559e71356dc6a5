import io
import json
import re
import resource
import shutil
import subprocess
import sys
from base64 import b64decode

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bvdm_data.cli import cli
from bvdm_data.clip import annotate_masks, split_gaps
from bvdm_data.viz import pictures, player
from bvdm_data.viz.pictures import COLOURS, write_animation
from bvdm_data.viz.player import write_player

SEEDS, DENSITIES = ("3", "4"), ("1 x", "2 x", "3 x")


def a_clip(seed=0, frames=5, size=(40, 48), first_id=1):
    masks = np.zeros((frames, *size), np.int32)
    masks[:2, 10:20, 5 + seed : 15 + seed] = 1
    masks[2:, 4:12, 0:12] = 2
    masks[2:, 12:20, 0:12] = 3
    masks[:, 30:39, 20:48] = 4
    renamed, table, _ = split_gaps(masks, {2: 1, 3: 1})
    ramp = np.linspace(0, 0.3, size[1], dtype=np.float32) + 0.05 * np.arange(frames)[:, None, None]
    clip = {
        "video": torch.from_numpy((ramp + 0.4 * (masks > 0)).astype(np.float32))[:, None],
        **annotate_masks(renamed, table, ("masks", "tracks"), 8),
    }
    if first_id > 1:
        clip["masks"] = torch.where(clip["masks"] > 0, clip["masks"] + first_id - 1, 0)
    return clip


def show_as_it_is(patch, module):
    patch.setattr(module, "GAMMA", 1)
    patch.setattr(module, "measure_display_range", lambda _: (0, 1))


@pytest.fixture(scope="module")
def clips():
    return {
        (seed, density): a_clip(int(seed), frames=5 + row)
        for seed in SEEDS
        for row, density in enumerate(DENSITIES)
    }


@pytest.fixture(scope="module")
def page(clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "player.html"
    with pytest.MonkeyPatch.context() as patch:
        show_as_it_is(patch, player)
        write_player(clips, path, title="A < B", note="Made for a test.")
    return path.read_text(encoding="utf-8")


def data_of(page):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(found)


def shown_masks(packed):
    """Paint the runs as the page does."""
    masks = np.zeros((packed["frames"], packed["height"], packed["width"]), np.int64)
    for mask, runs in zip(masks, packed["masks"], strict=True):
        for identity, y, x, length in np.frombuffer(b64decode(runs), "<u2").reshape(-1, 4).tolist():
            assert (mask[y, x : x + length] == 0).all()
            mask[y, x : x + length] = identity
    return masks


def shown_video(packed):
    head, content = packed["sheet"].split(",")
    assert head == "data:image/webp;base64"
    sheet = np.asarray(Image.open(io.BytesIO(b64decode(content))).convert("L")) / 255
    high, wide, columns = packed["height"], packed["width"], packed["columns"]
    corners = [divmod(frame, columns) for frame in range(packed["frames"])]
    return np.stack([sheet[r * high :, c * wide :][:high, :wide] for r, c in corners])


def test_player_has_frames_of_every_clip(clips, page):
    data = data_of(page)
    assert (data["axes"], data["values"]) == (["seed", "density"], [list(SEEDS), list(DENSITIES)])
    assert len(data["clips"]) == 6
    for packed, clip in zip(data["clips"], clips.values(), strict=True):
        video = clip["video"][:, 0].clamp(0, 1).numpy()
        assert shown_video(packed).shape == video.shape
        # The loss of WebP is far below what tells one frame from the next.
        assert np.abs(shown_video(packed) - video).mean(axis=(1, 2)).max() < 0.012
        assert np.abs(video[1:] - video[:-1]).mean(axis=(1, 2)).min() > 0.03


def test_player_shows_ids_lineage_and_colours(clips, page):
    data = data_of(page)
    for packed, clip in zip(data["clips"], clips.values(), strict=True):
        assert (shown_masks(packed) == clip["masks"].numpy()).all()
        assert packed["tracks"] == clip["tracks"][:4].tolist()
        assert [row[3] for row in packed["tracks"]] == [0, 0, 1, 1]
    assert [bytes.fromhex(colour[1:]) for colour in data["colours"]] == [*map(bytes, COLOURS)]


def test_player_keeps_ids_above_8_bits(tmp_path):
    path = tmp_path / "player.html"
    clip = a_clip(first_id=60_000)
    write_player({("0", "1"): clip}, path)
    (packed,) = data_of(path.read_text(encoding="utf-8"))["clips"]
    assert (shown_masks(packed) == clip["masks"].numpy()).all()
    clip["masks"][0, 0, 0] = 65_536
    with pytest.raises(ValueError, match=r"ids up to 65535, got id 65536 in clip \('0', '1'\)"):
        write_player({("0", "1"): clip}, path)


def test_player_shares_one_grey_scale(tmp_path, monkeypatch):
    path = tmp_path / "player.html"
    monkeypatch.setattr(player, "GAMMA", 1)
    dim, bright = a_clip(), a_clip()
    dim["video"] = dim["video"] / 4
    write_player({("0", "dim"): dim, ("0", "bright"): bright}, path)
    page = path.read_text(encoding="utf-8")
    first, second = map(shown_video, data_of(page)["clips"])
    low, high = np.percentile(torch.stack([dim["video"], bright["video"]]).numpy(), (0.5, 99.8))
    assert f"Black: grey {low:.3g}, white: grey {high:.3g}, gamma 1, in all clips." in page
    assert first.max() < 0.35 < 0.9 < second.max()


def test_player_is_one_safe_file(page, tmp_path):
    assert re.findall(r"https?:|//[a-z]+\.|@import|<link|src=\"|<iframe|fetch\(", page) == []
    assert "default-src 'none'; img-src data:;" in page
    assert re.findall(r"@[A-Z]+@", page) == []
    assert "<title>A &lt; B</title>" in page
    path = tmp_path / "player.html"
    write_player({("</script><b>", "1"): a_clip()}, path)
    hostile = path.read_text(encoding="utf-8")
    assert "</script><b>" not in hostile
    assert data_of(hostile)["values"][0] == ["</script><b>"]


def without(clip, key):
    return {name: value for name, value in clip.items() if name != key}


def test_player_refuses_unshowable_clips(tmp_path):
    clip, path = a_clip(), tmp_path / "player.html"
    batch = {key: torch.stack([value, value]) for key, value in clip.items()}
    bare = {"video": clip["video"], "masks": clip["masks"]}
    large = clip | {"video": torch.zeros(9, 1, 2, 6000)}
    for clips, message in (
        ({}, "clips must hold at least one clip, got none"),
        (
            {("0", "1"): clip, ("1", "2"): clip},
            r"every value of one setting .* got no clip \('0', '2'\)",
        ),
        ({("0", "1"): bare}, r"got no tracks in clip \('0', '1'\); ask the"),
        (
            {("0", "1"): large},
            "at most 16383 pixels a side, got 9 frames of 2 x 6000 in clip .*, 18000 pixels; show",
        ),
        ({("0", "1"): batch}, r"must be one clip with video \[F, C, H, W\]"),
    ):
        with pytest.raises(ValueError, match=message):
            write_player(clips, path)
    for name in ("01", 3, ("0",), (0, 1), ("0", np.int64(1))):
        with pytest.raises(TypeError, match="clips must be by pairs of texts, the values of the"):
            write_player({name: clip}, path)
    with pytest.raises(ValueError, match=r"path must end in '.html', got '.*page.htm'"):
        write_player({("0", "1"): clip}, tmp_path / "page.htm")
    assert list(tmp_path.iterdir()) == []


def test_preview_writes_player_and_mp4(tiny_model, tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="the extra preview is not installed")
    command = f"preview --model {tiny_model} --output {tmp_path} --frames 2 --clips 1 --seed 5 "
    command += "--size 96x96 --page --page-seeds 2 --page-densities 0.5,2 --page-frames 3 --mp4"
    result = CliRunner().invoke(cli, command.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'clip.mp4'}" in result.output
    assert re.search(r"player\.html \(0\.\d MB, 4 clips\)", result.output)
    page = (tmp_path / "player.html").read_text(encoding="utf-8")
    assert "fast, 1 step, variation 1 (0 keeps to the fitted video, 1 is" in page
    data = data_of(page)
    assert data["values"] == [["5", "6"], ["0.5 x (3 nuclei)", "2 x (12 nuclei)"]]
    counts = [len(np.unique(shown_masks(packed)[0])) - 1 for packed in data["clips"]]
    assert counts == [3, 12, 3, 12]
    assert not np.array_equal(*(shown_masks(data["clips"][place]) for place in (0, 2)))
    assert {packed["frames"] for packed in data["clips"]} == {3}


def test_preview_refuses_a_page_of_nothing():
    for option, message in (
        ("--page-seeds 0", "--page-seeds must be at least 1, got 0"),
        ("--page-frames 0", "--page-frames must be at least 1, got 0"),
        ("--page-densities 1,-2", "must look like 0.5,1,2 (numbers above 0), got '1,-2'"),
        ("--page-densities inf", "must look like 0.5,1,2 (numbers above 0), got 'inf'"),
        ("--page-densities some", "must look like 0.5,1,2 (numbers above 0), got 'some'"),
    ):
        result = CliRunner().invoke(cli, ["preview", "--page", *option.split()])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def test_mp4_shows_frames_in_order(tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="the extra preview is not installed")
    clip = {"video": torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 1, 31, 33)}
    show_as_it_is(monkeypatch, pictures)
    write_animation(clip, tmp_path / "clip.mp4")
    command = [ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "clip.mp4"), "-f", "rawvideo"]
    read = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    about = re.search(r"Video: h264 .* yuv420p.* (\d+)x(\d+).* 4 fps", read.stderr.decode())
    width, height = map(int, about.groups())
    assert (width % 2, height % 2) == (0, 0)
    shown = np.frombuffer(read.stdout, np.uint8).reshape(6, height, width, 3)
    greys = [float(np.median(frame[height // 2 :, width // 3 : width // 2])) for frame in shown]
    np.testing.assert_allclose(greys, np.linspace(0, 255, 6), atol=4)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_mp4_on_full_disk_leaves_nothing(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="the extra preview is not installed")
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, allowed[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*clip\.mp4: .*ffmpeg ended with"):
            write_animation(a_clip(), tmp_path / "clip.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert list(tmp_path.iterdir()) == []


def test_mp4_names_its_missing_extra_first(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    message = r"needs the package 'imageio_ffmpeg', .* pip install 'bvdm-data\[preview\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        write_animation(a_clip(), tmp_path / "clip.mp4")
    command = ["preview", "--mp4", "--output", str(tmp_path)]
    with pytest.raises(ModuleNotFoundError, match=message):
        CliRunner().invoke(cli, command, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_browser_draws_player_and_tree(page, tmp_path):
    path = tmp_path / "player.html"
    path.write_text(page, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    result = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True)
    assert "4 nuclei in 6 frames of 40 \N{MULTIPLICATION SIGN} 48 pixels." in result.stdout
    assert 'aria-label="Frame 0: 2 nuclei"' in result.stdout
    assert re.findall(r'<g data-id="(\d)"', result.stdout) == ["3", "1", "4", "2"]
