import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.grid import write_image_grid
from bvdm_data.clip import annotate_masks, split_gaps
from bvdm_data.viz.pictures import (
    COLOURS,
    GAMMA,
    render_contact_sheet,
    render_frame,
    write_animation,
    write_contact_sheet,
)


def a_clip(frames=3, size=(40, 48), grey=0.5):
    """A nucleus that divides in frame 1, on black."""
    masks = np.zeros((frames, *size), np.int32)
    masks[0, 10:20, 10:20] = 1
    masks[1:, 4:12, 4:12] = 2
    masks[1:, 20:28, 30:38] = 3
    renamed, table, _ = split_gaps(masks, {2: 1, 3: 1})
    return {
        "video": torch.from_numpy((masks > 0) * np.float32(grey))[:, None],
        **annotate_masks(renamed, table, ("masks", "tracks"), 8),
        "index": torch.tensor(0),
        "source": torch.tensor(1, dtype=torch.int8),
    }


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def gif_frames(path):
    with Image.open(path) as image:
        frames = []
        for frame in range(image.n_frames):
            image.seek(frame)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
        return frames


def shown(image, grey):
    """How many pixels have exactly this grey."""
    return int((image == grey).all(-1).sum())


def test_render_frame_stretches_the_range():
    frame = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.9]])
    image = render_frame(frame, grey_range=(0.1, 0.3))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert image.mode == "RGB"


def test_render_frame_gamma_brightens_dim_greys():
    frame = np.array([[0.0, 0.25, 1.0]])
    image = render_frame(frame, grey_range=(0, 1), gamma=0.5)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]


def test_render_frame_outlines_each_nucleus():
    mask = torch.zeros(12, 12, dtype=torch.int32)
    mask[3:9, 3:9] = 7
    image = render_frame(torch.zeros(1, 12, 12), mask, grey_range=(0, 1), ids=False)
    drawn = np.asarray(image).any(-1)
    assert drawn.sum() == 20  # the rim of a square of 6 x 6
    assert (np.asarray(image)[drawn] == COLOURS[7]).all()
    image = render_frame(np.zeros((12, 12)), mask, grey_range=(0, 1), scale=3, ids=False)
    assert image.size == (36, 36)
    assert np.asarray(image).any(-1).sum() == 4 * 17  # the rim of a square of 18 x 18
    image = render_frame(np.zeros((5, 5)), np.ones((5, 5), int), grey_range=(0, 1), ids=False)
    assert not np.asarray(image).any()
    mask = np.repeat([[1, 1, 1, 2, 2, 2]], 6, axis=0)
    image = np.asarray(render_frame(np.zeros((6, 6)), mask, grey_range=(0, 1), ids=False))
    assert (image[:, 2] == COLOURS[1]).all()
    assert (image[:, 3] == COLOURS[2]).all()


def test_render_frame_prints_ids_on_request():
    mask = np.zeros((30, 30), int)
    mask[5:25, 5:25] = 42
    plain, marked = (
        np.asarray(render_frame(np.zeros((30, 30)), mask, grey_range=(0, 1), ids=ids))
        for ids in (False, True)
    )
    rows, columns = np.nonzero((plain != marked).any(-1))
    assert len(rows) > 10
    assert rows.mean() == pytest.approx(14.5, abs=1.5)
    assert columns.mean() == pytest.approx(14.5, abs=1.5)


def test_render_frame_draws_any_mask():
    for mask in (np.zeros((9, 9), int), np.full((9, 9), 3), np.eye(9, dtype=np.uint16) * 65535):
        assert render_frame(np.zeros((9, 9)), mask, grey_range=(0, 1)).size == (9, 9)


def test_colours_of_neighbours_differ():
    colours = COLOURS.astype(int)
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 100
    assert colours.max(1).min() == 255
    assert colours.sum(1).min() > 300


def test_render_frame_refuses():
    for arguments, message in (
        ({"grey_range": (0.5, 0.5)}, r"grey_range must be a finite low .* got \(0.5, 0.5\)"),
        ({"grey_range": (0, float("nan"))}, "grey_range must be a finite low"),
        ({"gamma": 0}, "gamma must be above 0, got 0"),
        ({"scale": 0}, "scale must be at least 1 screen pixel a pixel, got 0"),
        ({"video_frame": np.zeros((3, 4, 4))}, r"video_frame must be one grey image.*\(3, 4, 4\)"),
        ({"mask": np.zeros((4, 5), int)}, r"mask must have the shape of video_frame, \(4, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            render_frame(**{"video_frame": np.zeros((4, 4)), "grey_range": (0, 1), **arguments})


def test_contact_sheet_shares_one_scale(tmp_path):
    path = tmp_path / "sheet.png"
    clips = {"bright": a_clip(grey=0.8), "dim": a_clip(grey=0.2)}
    write_contact_sheet(clips, path, frames=[0])
    dim = round(255 * (0.2 / 0.8) ** GAMMA)
    # Magnified by 4 a nucleus is 40 x 40, drawn once plain and once with an outline and an id.
    assert 1600 < shown(pixels(path), dim) < 3200
    sheet = render_contact_sheet({"a": a_clip()}, grey_range=(0, 1), gamma=1, frames=[0])
    assert shown(np.asarray(sheet), 128) > 1600


def test_contact_sheet_shows_eight_frames(tmp_path):
    write_contact_sheet({"long": a_clip(frames=30)}, tmp_path / "long.png")
    write_contact_sheet({"long": a_clip(frames=30)}, tmp_path / "all.png", frames=range(30))
    assert pixels(tmp_path / "long.png").shape[1] < 9 * 4 * 48 + 100
    assert pixels(tmp_path / "all.png").shape[1] > 30 * 4 * 48


def test_contact_sheet_without_masks(tmp_path):
    clip = a_clip()
    write_contact_sheet({"a": clip}, tmp_path / "two.png")
    write_contact_sheet({"a": {"video": clip["video"]}}, tmp_path / "one.png")
    two, one = (pixels(tmp_path / name).shape[0] for name in ("two.png", "one.png"))
    assert two - one == 4 * 40 + 6


def test_contact_sheet_takes_mixed_sizes(tmp_path):
    clips = {"a": a_clip(size=(40, 90)), "b": a_clip(size=(160, 40)), "even": a_clip(grey=0)}
    write_contact_sheet(clips, tmp_path / "deep" / "folder" / "sheet.png")
    assert (tmp_path / "deep" / "folder" / "sheet.png").is_file()


def test_contact_sheet_refuses_missing_frames(tmp_path):
    with pytest.raises(IndexError, match="frames must be from 0 to 2 for 'short', got 3"):
        write_contact_sheet({"short": a_clip()}, tmp_path / "a.png", frames=[0, 3])
    with pytest.raises(ValueError, match="frames must name at least one frame"):
        write_contact_sheet({"short": a_clip()}, tmp_path / "a.png", frames=[])
    with pytest.raises(ValueError, match="clips must hold at least one clip, got none"):
        write_contact_sheet({}, tmp_path / "a.png")


def test_animation_has_all_frames_and_loops(tmp_path):
    write_animation(a_clip(frames=5), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 5
        assert image.info["duration"] == 250
        assert image.info["loop"] == 0


def test_animation_shows_plain_and_outlined(tmp_path):
    write_animation(a_clip(), tmp_path / "a.gif")
    for frame in gif_frames(tmp_path / "a.gif"):
        coloured = np.ptp(frame, axis=-1) > 20
        middle = frame.shape[1] // 2
        assert not coloured[:, :middle].any()
        assert coloured[:, middle:].any()


def test_animation_draws_a_line_at_division(tmp_path):
    clip = a_clip()
    write_animation(clip, tmp_path / "with.gif")
    clip["tracks"][:, 3] = 0
    write_animation(clip, tmp_path / "without.gif")
    pairs = zip(
        gif_frames(tmp_path / "with.gif"), gif_frames(tmp_path / "without.gif"), strict=True
    )
    differences = [int((one != other).any(-1).sum()) for one, other in pairs]
    assert differences[0] == differences[2] == 0
    assert differences[1] > 20


def test_animation_magnifies_small_clips_only(tmp_path):
    write_animation(a_clip(size=(250, 256), frames=2), tmp_path / "small.gif")
    write_animation({"video": torch.rand(2, 1, 300, 600)}, tmp_path / "large.gif")
    with Image.open(tmp_path / "small.gif") as small, Image.open(tmp_path / "large.gif") as large:
        assert small.width > 2 * 512
        assert 600 < large.width < 650


def test_image_grid_fills_rows(tmp_path):
    images = torch.tensor([0.0, 0.4, 0.6, 0.8, 1.0]).reshape(5, 1, 1).expand(5, 10, 10)
    write_image_grid(images, tmp_path / "g.png", columns=3, magnify=2)
    sheet = pixels(tmp_path / "g.png")
    centres = [(20, 20), (20, 46), (20, 72), (46, 20), (46, 46)]
    assert [int(sheet[place][0]) for place in centres] == [0, 102, 153, 204, 255]
    assert [shown(sheet, grey) for grey in (0, 102, 153, 204)] == [400] * 4


def test_grid_makes_room_for_titles(tmp_path):
    images = np.random.default_rng(0).random((4, 10, 10))
    write_image_grid(images, tmp_path / "plain.png", columns=2)
    write_image_grid(images, tmp_path / "a.png", columns=2, titles=["mean", "a rather long title"])
    write_image_grid(images, tmp_path / "b.png", columns=2, row_titles=["first", "second"])
    plain, above, left = (pixels(tmp_path / n).shape for n in ("plain.png", "a.png", "b.png"))
    assert above[0] > plain[0]
    assert above[1] > plain[1]
    assert left[0] == plain[0]
    assert left[1] > plain[1]


def test_grid_refuses(tmp_path):
    for arguments, message in (
        ({"images": torch.zeros(4, 4)}, r"images must be \[N, H, W\].*got \(4, 4\)"),
        ({"images": torch.zeros(0, 4, 4)}, r"with N at least 1"),
        ({"columns": 0}, "columns must be at least 1, got 0"),
        ({"magnify": 0}, "magnify must be at least 1"),
        ({"titles": ["a"] * 4}, "titles must be at most 3 for these images, got 4"),
        ({"row_titles": ["a"] * 3}, "row_titles must be at most 2 for these images, got 3"),
    ):
        given = {"images": torch.zeros(3, 4, 4), "columns": 2, **arguments}
        with pytest.raises(ValueError, match=message):
            write_image_grid(path=tmp_path / "g.png", **given)


def test_images_refuse_other_suffixes(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in '.png', got '.*a.jpg'"):
        write_contact_sheet({"a": a_clip()}, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"path must end in '.gif' or '.mp4', got '.*a.png'"):
        write_animation(a_clip(), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"path must end in '.png', got '.*a'"):
        write_image_grid(torch.zeros(1, 2, 2), str(tmp_path / "a"), columns=1)
    assert list(tmp_path.iterdir()) == []


def test_images_refuse_batches(tmp_path):
    batch = {key: torch.stack([value, value]) for key, value in a_clip().items()}
    message = r"one clip with video \[F, C, H, W\], got \[2, 3, 1, 40, 48\]"
    with pytest.raises(ValueError, match=message + " in clip 'a'; take the clips of a batch"):
        write_contact_sheet({"a": batch}, tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        write_animation(batch, tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


def test_images_replace_only_their_file(tmp_path):
    (tmp_path / "a.png").write_text("old")
    write_image_grid(torch.rand(2, 5, 5), tmp_path / "a.png", columns=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert pixels(tmp_path / "a.png").ndim == 3
