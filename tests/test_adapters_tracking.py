import logging
import runpy
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ctc_metrics.scripts.evaluate import evaluate_sequence
from ctc_metrics.scripts.validate import validate_sequence
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms._presets import OpticalFlow

from bvdm_data.adapters.common import find_ancestors
from bvdm_data.adapters.optical_flow import FlowPairs, flow_pairs
from bvdm_data.adapters.tracking import TrackastraWindows, trackastra_windows, write_ctc
from bvdm_data.adapters.video_objects import RawVideos, video_datapoint
from bvdm_data.clip import CameraScale, annotate_masks, association, divisions, split_gaps
from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.datasets.export import export
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.system import require
from tests.helpers.clips import (
    SPARSE,
    make_planted_clip,
    make_sparse_clip,
    run_snippet,
    with_tracks,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
SCALE = CameraScale(offset=32768, full=36863)


@pytest.fixture(scope="module")
def clip(tiny_video):
    return make_planted_clip(tiny_video, SCALE, index=7)


@pytest.fixture(scope="module")
def videos(tiny_model):
    return SyntheticHeLaVideos(
        frames=4, size=64, length=3, model=tiny_model, nuclei=4,
        annotations=("masks", "tracks", "flow"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    root = tmp_path_factory.mktemp("ctc")
    write_ctc(clip, root, name="01", scale=SCALE)
    return root


def test_trackastra_window_holds_nuclei_and_ancestry(clip):
    window = trackastra_windows(clip, 3)[4]
    times, ids = window["timepoints"].tolist(), window["labels"].tolist()
    assert times == [4] * 4 + [5] * 4 + [6] * 5
    assert ids == [1, 2, 3, 6] * 2 + [1, 3, 4, 5, 6]
    for i, first in enumerate(ids):
        for j, second in enumerate(ids):
            family = first == second or {first, second} in ({2, 4}, {2, 5})
            assert window["assoc_matrix"][i, j] == family
    inside = np.argwhere(clip["masks"][4].numpy() == 1).mean(0)
    np.testing.assert_allclose(window["coords"][0], [4, *inside], rtol=1e-5)
    table = np.array([[1, 4, 5, 3], [3, 2, 3, 8], [8, 0, 1, 0]])
    assert find_ancestors(table) == {8: [8], 3: [3, 8], 1: [1, 3, 8]}


def test_trackastra_association_matches_its_own(clip):
    data = require("trackastra.data.data", "tracking")
    pandas = pytest.importorskip("pandas")
    rows = [row for row in clip["tracks"].tolist() if row[0]]
    table = pandas.DataFrame(rows, columns=["label", "t1", "t2", "parent"])
    masks = clip["masks"].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, _, graph = data._ctc_lineages(table, masks)
    same = {time: {one: one for one in range(1, 7)} for time in range(len(masks))}
    for window in trackastra_windows(clip, 5):
        ids, times = window["labels"].numpy(), window["timepoints"].numpy()
        theirs = data._ctc_assoc_matrix(ids, times, graph, same)
        np.testing.assert_array_equal(window["assoc_matrix"].numpy() > 0, theirs)


@pytest.mark.slow
def test_trackastra_windows_equal_ctcdata(clip, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = require("trackastra.data", "tracking").CTCData(str(folder / "01"), window_size=4)
        items = [theirs[number] for number in range(len(theirs))]
    ours = trackastra_windows(clip, 4)
    assert len(ours) == len(items) == 9
    for one, other in zip(ours, items, strict=True):
        assert list(one) == list(other)
        for key, value in one.items():
            assert value.dtype == other[key].dtype
            torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-5)


def test_trackastra_windows_skip_empty_frames(clip):
    masks, tracks = clip["masks"].clone(), clip["tracks"].clone()
    masks[2:] = 0
    tracks = tracks[tracks[:, 1] < 2]
    tracks[tracks[:, 0] > 0, 2] = 1
    root = logging.getLogger()
    before = list(root.handlers), root.level
    windows = trackastra_windows({**clip, "masks": masks, "tracks": tracks}, 2)
    assert (root.handlers, root.level) == before
    assert [one["timepoints"].unique().tolist() for one in windows] == [[0, 1], [1]]


def test_trackastra_collates_streamed_windows(videos):
    collate = require("trackastra.data", "tracking").collate_sequence_padding
    loader = DataLoader(TrackastraWindows(videos, 3), batch_size=4, collate_fn=collate)
    batches = list(loader)
    assert sum(len(batch["coords"]) for batch in batches) == 3 * 2
    first = batches[0]
    count = first["coords"].shape[1]
    assert first["assoc_matrix"].shape == (4, count, count)
    assert first["features"].shape == (4, count, 7)


def test_trackastra_windows_refuse_broken_clips(clip):
    for changes, window, words in (
        ({}, 13, "window must be at most the 12 frames of the clip, got 13; give frames="),
        ({}, 1, "window must be 2 or more, got 1"),
        ({"tracks": None}, 3, r"clip must have the key 'tracks', got .*annotations=\(\.\.\., 'tr"),
        ({"tracks": torch.zeros(9, 4, dtype=torch.int32)}, 3, "got id 1 in frame 0 only in masks"),
        ({"video": None}, 3, r"the key .video., got the keys \(.masks., .tracks., "),
        ({"video": torch.zeros(2, 12, 1, 8, 8)}, 3, r"clip must be one clip .*got \[2, 12"),
    ):
        given = {key: value for key, value in {**clip, **changes}.items() if value is not None}
        with pytest.raises(ValueError, match=words):
            trackastra_windows(given, window)


@pytest.mark.parametrize("shift", [0, 300, 70000])
@pytest.mark.parametrize("kind", SPARSE)
def test_windows_and_pairs_of_sparse_clips(kind, shift):
    clip, frames = make_sparse_clip(kind, shift), SPARSE[kind]
    windows = trackastra_windows(clip, 2)
    assert [one["timepoints"].tolist() for one in windows] == [
        there for start in (0, 1) if (there := [t for t in frames if start <= t < start + 2])
    ]
    assert all(one["assoc_matrix"].all() for one in windows)
    both = [t for t in (0, 1) if {t, t + 1} <= set(frames)]
    for time, pair in enumerate(flow_pairs(clip)):
        assert torch.equal(pair.valid, (clip["masks"][time] > 0) & (time in both))


@pytest.mark.parametrize("kind", SPARSE)
def test_ctc_folders_of_sparse_clips(kind, tmp_path):
    clip = make_sparse_clip(kind, shift=32760)
    write_ctc(clip, tmp_path, name="01", scale=SCALE)
    again = read_sequence(tmp_path, "01")
    assert again.tracks.tolist() == [row for row in clip["tracks"].tolist() if row[0]]
    for number in range(3):
        np.testing.assert_array_equal(again.masks(number), clip["masks"][number])
    with pytest.raises(ValueError, match="clip must have at least 2 frames, got 1; give frames=2"):
        flow_pairs({key: value[:1] for key, value in clip.items() if value.ndim})


def score_against_itself(clip, folder):
    """Return SEG and TRA of the truth of a clip against its copy."""
    write_ctc(clip, folder, name="01", scale=SCALE)
    result = shutil.copytree(folder / "01_GT/TRA", folder / "01_RES")
    (result / "man_track.txt").rename(result / "res_track.txt")
    found = evaluate_sequence(str(result), str(folder / "01_GT"), ["SEG", "TRA"], threads=1)
    return found["SEG"], found["TRA"]


@pytest.mark.parametrize("largest", [32767, 32768, 65535, 70000])
def test_large_ids_score_in_ctcmetrics(largest, tmp_path):
    small = make_family()
    shift = largest - int(small["masks"].max())
    table = small["tracks"] + shift * torch.tensor([1, 0, 0, 1]) * (small["tracks"] > 0)
    masks = small["masks"] + shift * (small["masks"] > 0)
    clip = {**small, "masks": masks, "tracks": table.int()}
    assert score_against_itself(clip, tmp_path) == (1, 1)
    again, written = read_sequence(tmp_path, "01"), small if largest > 32767 else clip
    assert again.tracks.tolist() == [row for row in written["tracks"].tolist() if row[0]]
    assert np.array_equal(again.masks(2), written["masks"][2])


def test_full_frames_score_in_ctcmetrics(tmp_path):
    masks = np.full((3, 8, 8), 2)
    masks[:, :4], masks[2, 7, 7] = 1, 0
    clip = with_tracks(masks, np.array([[1, 0, 2, 0], [2, 0, 2, 0]]))
    assert score_against_itself(clip, tmp_path) == (1, 1)
    again = read_sequence(tmp_path, "01")
    for frame, mask in enumerate(clip["masks"].numpy()):
        changed = np.argwhere(again.masks(frame) != mask).tolist()
        assert changed == ([] if frame == 2 else [[0, 0]])


def make_family():
    """Return a clip: 1 leaves and returns as 3; 2 leaves and is back as two daughters, 4 and 5."""
    masks = np.zeros((5, 12, 12), np.int32)
    masks[[0, 2, 3, 4], :4] = 7
    masks[:3, 5:8], masks[4, 5:7, :5], masks[4, 5:7, 6:] = 8, 9, 10
    masks[2, 10:], masks[3, 10:, :5], masks[3, 10:, 6:] = 11, 12, 13
    masks, table, _ = split_gaps(masks, {9: 8, 10: 8, 12: 11, 13: 11})
    return with_tracks(masks, table)


def test_lineage_matches_ctcmetrics(tmp_path):
    clip = make_family()
    write_ctc(clip, tmp_path, name="01", scale=SCALE)
    result = shutil.copytree(tmp_path / "01_GT/TRA", tmp_path / "01_RES")
    (result / "man_track.txt").rename(result / "res_track.txt")
    found = evaluate_sequence(str(result), str(tmp_path / "01_GT"), ["TRA", "BC"], threads=1)
    assert found["gt_divisions"] == found["tp_div(0)"] == len(divisions(clip)) == 2
    # Its graph has an edge for each of ours, and three more over the gaps.
    nodes = int((clip["tracks"][:, 2] - clip["tracks"][:, 1] + 1).sum())
    assert found["AOGM_0"] == 10 * nodes + 1.5 * (len(association(clip)) + 3)


def test_lineage_matches_traccuracy(tmp_path):
    loaders = pytest.importorskip("traccuracy.loaders", reason="traccuracy: extra interop")
    clip = make_family()
    write_ctc(clip, tmp_path, name="01", scale=SCALE)
    truth = tmp_path / "01_GT/TRA"
    found = loaders.load_ctc_data(str(truth), str(truth / "man_track.txt"))
    name = {key: (node["segmentation_id"], node["t"]) for key, node in found.nodes.items()}
    edges = [(name[source], name[target]) for source, target in found.edges]
    near = sorted([t, one, other] for (one, t), (other, then) in edges if then == t + 1)
    assert association(clip).tolist() == near
    assert len(edges) == len(near) + 3
    mothers = {one: found.graph.successors(one) for one in found.get_divisions()}
    families = {
        (name[one][0], *sorted(name[child][0] for child in both)) for one, both in mothers.items()
    }
    assert {tuple(row[:3]) for row in divisions(clip).tolist()} == families


def test_require_names_the_missing_extra():
    with pytest.raises(ImportError, match=r"'no_such_package'.*bvdm-data\[tracking\]"):
        require("no_such_package", "tracking")


def test_write_ctc_reads_back(clip, folder):
    again = read_sequence(folder, "01")
    for number in range(12):
        grey = SCALE.to_grey(again.frame(number))
        np.testing.assert_allclose(grey, clip["video"][number, 0], atol=1e-6)
        np.testing.assert_array_equal(again.masks(number), clip["masks"][number])
    assert again.tracks.tolist() == clip["tracks"][:6].tolist()


def test_write_ctc_is_valid_for_ctcmetrics(folder, tmp_path):
    result = tmp_path / "01_RES"
    result.mkdir()
    for path in (folder / "01_GT/TRA").iterdir():
        shutil.copy(path, result / path.name.replace("man_track", "mask"))
    (result / "mask.txt").rename(result / "res_track.txt")
    assert validate_sequence(str(result), threads=1) == {"Valid": 1}
    found = evaluate_sequence(str(result), str(folder / "01_GT"), ["SEG", "TRA"], threads=1)
    assert (found["SEG"], found["TRA"]) == (1.0, 1.0)


def test_folders_pass_traccuracy(clip, folder, tiny_model, tmp_path):
    loaders = pytest.importorskip("traccuracy.loaders", reason="traccuracy: extra interop")
    truth = folder / "01_GT/TRA"
    graph = loaders.load_ctc_data(str(truth), str(truth / "man_track.txt"), run_checks=True).graph
    name = {key: (node["segmentation_id"], node["t"]) for key, node in graph.nodes(data=True)}
    rows = clip["tracks"][:6].tolist()
    wanted = {((2, 5), (4, 6)), ((2, 5), (5, 6))}
    for one, first, last, _ in rows:
        wanted |= {((one, time), (one, time + 1)) for time in range(first, last)}
    assert {(name[source], name[target]) for source, target in graph.edges} == wanted
    given = {"frames": 12, "size": 96, "nuclei": 6, "sequences": 2, "progress": False}
    for name in export(tmp_path / "data", model=tiny_model, **given):
        truth = tmp_path / f"data/{name}_GT/TRA"
        table = truth / "man_track.txt"
        graph = loaders.load_ctc_data(str(truth), str(table), run_checks=True).graph
        rows = np.loadtxt(table, int, ndmin=2)
        assert graph.number_of_nodes() == int((rows[:, 2] - rows[:, 1] + 1).sum())
        assert max(degree for _, degree in graph.out_degree) == 2  # a nucleus divides


def test_write_ctc_refuses_broken_clips(clip, tmp_path):
    with pytest.raises(TypeError, match=r"scale must be a CameraScale, got None; .*CameraScale\(0"):
        write_ctc(clip, tmp_path, name="01", scale=None)
    with pytest.raises(ValueError, match='name must be two or more digits, like "01", got 1'):
        write_ctc(clip, tmp_path, name=1, scale=SCALE)
    masks = clip["masks"].clone()
    masks[3][masks[3] == 1] = 0
    with pytest.raises(ValueError, match="got id 1 in frame 3 only in tracks"):
        write_ctc({**clip, "masks": masks}, tmp_path / "data", name="01", scale=SCALE)
    assert list(tmp_path.iterdir()) == []


def test_flow_pairs_follow_nuclei(videos):
    clip = videos.clip(0)
    for frame, (image1, image2, flow, valid) in enumerate(flow_pairs(clip)):
        assert image1.shape == image2.shape == (3, 64, 64)
        assert torch.equal(image2[2], clip["video"][frame + 1, 0])
        assert torch.equal(flow[0], clip["flow"][frame, 1])
        assert torch.equal(flow[1], clip["flow"][frame, 0])
        now, then = clip["masks"][frame], clip["masks"][frame + 1]
        y, x = torch.nonzero(valid, as_tuple=True)
        right = (x + flow[0, y, x]).round().long().clamp(0, 63)
        down = (y + flow[1, y, x]).round().long().clamp(0, 63)
        assert (then[down, right] == now[y, x]).float().mean() > 0.8
        assert not flow[:, ~valid].any()


def test_flow_is_invalid_at_divisions(clip):
    pairs = flow_pairs({**clip, "flow": torch.zeros(11, 2, 128, 160)})
    before, at = pairs[4].valid, pairs[5].valid
    assert before[clip["masks"][4] == 2].all()
    assert not at[clip["masks"][5] == 2].any()
    assert at[clip["masks"][5] == 1].all()
    assert not at[clip["masks"][5] == 0].any()


def test_flow_pairs_take_torchvision_transforms(videos):
    preset = OpticalFlow()

    def transforms(image1, image2, flow, valid):
        return *preset(image1, image2), flow, valid

    plain, changed = (default_collate(list(FlowPairs(videos, one))) for one in (None, transforms))
    assert [tuple(one.shape) for one in plain] == [
        (9, 3, 64, 64), (9, 3, 64, 64), (9, 2, 64, 64), (9, 64, 64),
    ]  # fmt: skip
    assert plain.valid.dtype == torch.bool
    torch.testing.assert_close(changed.image1, 2 * plain.image1 - 1)
    with pytest.raises(TypeError, match="transforms must be a function of four tensors, got 3"):
        FlowPairs(videos, 3)


class Kept(Dataset):
    # Iteration finds no end here.
    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        return self.clips[index % len(self.clips)]


def one_nucleus(number):
    masks = np.zeros((2, 8, 8), np.int32)
    masks[:, 2:6, 2:6] = number
    video = torch.full((2, 1, 8, 8), number / 10)
    video[:, :, 2:6, 2:6] = 1
    tables = annotate_masks(masks, np.array([[number, 0, 1, 0]]), ("masks", "tracks"), 1)
    return {"video": video, "flow": torch.zeros(1, 2, 8, 8), **tables}


def numbers_in(items):
    return [
        round(10 * float(one.image1[0, 0, 0])) if isinstance(one, tuple) else int(one["labels"][0])
        for one in items
    ]


@pytest.mark.parametrize(
    ("make", "kind"), [(FlowPairs, list), (lambda clips: TrackastraWindows(clips, 2), Kept)]
)
def test_workers_split_a_list(make, kind):
    data = make(kind([one_nucleus(number) for number in range(1, 6)]))
    assert numbers_in(data) == [1, 2, 3, 4, 5]
    for _ in range(2):
        loader = DataLoader(data, batch_size=None, num_workers=2)
        assert numbers_in(loader) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("by", ["environment", "process group"])
def test_ranks_split_a_list_equally(by, monkeypatch):
    data, found = FlowPairs([one_nucleus(number) for number in range(1, 6)]), []
    for rank in range(2):
        if by == "environment":
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "2")
        else:
            said = {"is_initialized": True, "get_rank": rank, "get_world_size": 2}
            for name, value in said.items():
                monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
        found.append([numbers_in(DataLoader(data, None, num_workers=n)) for n in (0, 2)])
    assert found == [[[1, 3, 5]] * 2, [[2, 4, 1]] * 2]


def test_split_refuses_a_single_clip():
    for make in (FlowPairs, TrackastraWindows):
        with pytest.raises(
            TypeError, match=r"clips must be a data set or .*got dict; write \[clip"
        ):
            make(one_nucleus(1))
        with pytest.raises(TypeError, match="clips must be a data set or a list of clips, got int"):
            make(3)


def test_datapoint_repeats_objects_in_every_frame(clip):
    point = video_datapoint(clip)
    assert (point.video_id, point.size, len(point.frames)) == (7, (128, 160), 12)
    for number, frame in enumerate(point.frames):
        assert frame.data.shape == (3, 128, 160)
        assert [one.object_id for one in frame.objects] == [1, 2, 3]
        for one in frame.objects:
            assert one.frame_index == number
            assert one.segment.dtype == torch.uint8
            assert torch.equal(one.segment > 0, clip["masks"][number] == one.object_id)
    assert not point.frames[6].objects[1].segment.any()  # it has divided


def test_datapoints_fit_the_sam2_collate(clip):
    points = [video_datapoint(clip, most_objects=2), video_datapoint(clip, most_objects=1)]
    images = torch.stack([torch.stack([f.data for f in one.frames]) for one in points], dim=1)
    assert images.shape == (12, 2, 3, 128, 160)
    per_frame = [
        torch.stack([o.segment.bool() for one in points for o in one.frames[time].objects])
        for time in range(12)
    ]
    assert torch.stack(per_frame).shape == (12, 3, 128, 160)
    with pytest.raises(ValueError, match="most_objects must be 1 or more, got 0"):
        video_datapoint(clip, most_objects=0)
    with pytest.raises(ValueError, match="must show a nucleus in its first frame, got none"):
        video_datapoint({**clip, "masks": 0 * clip["masks"]})


def test_raw_videos_hold_video_and_segments(videos):
    raw = RawVideos(videos)
    assert len(raw) == 3
    video, segments = raw.get_video(2)
    clip = videos.clip(2)
    assert (video.video_name, video.video_id, len(video)) == ("2", 2, 4)
    for number, frame in enumerate(video.frames):
        assert frame.frame_idx == number
        assert torch.equal(frame.data[0], clip["video"][number, 0])
        found = segments.load(number)
        assert sorted(found) == [one for one in clip["masks"][number].unique().tolist() if one]
        assert all(torch.equal(m, clip["masks"][number] == one) for one, m in found.items())
    with pytest.raises(IndexError, match="idx must be from 0 to 2, got 3"):
        raw.get_video(3)
    for given, name in (([clip], "list"), (clip["video"], "Tensor")):
        with pytest.raises(TypeError, match=rf"videos must be .* with clip\(index\).*got {name}"):
            RawVideos(given)


def test_raw_videos_count_all_ranks(tiny_model):
    endless = SyntheticHeLaVideos(model=tiny_model)
    with pytest.raises(ValueError, match="length must be given for an endless data set"):
        RawVideos(endless)
    assert len(RawVideos(endless, length=5)) == 5
    videos = SyntheticHeLaVideos(model=tiny_model, length=4, shard=(0, 2))
    assert len(RawVideos(videos)) == 4
    mix = MixedVideos({"a": videos, "b": videos}, at_end="drop", shard=(1, 2))
    assert len(RawVideos(mix)) == 8


@pytest.mark.parametrize("place", ["Tracking: windows", "Tracking: association", "Files: write"])
def test_consumers_snippet_runs(place, tmp_path, monkeypatch):
    pytest.importorskip("geff", reason="the package geff: extra lineage")
    pytest.importorskip("zarr", minversion="3", reason="zarr 3: extra ome")
    monkeypatch.chdir(tmp_path)
    run_snippet(*place.split(" "))


@pytest.mark.filterwarnings("ignore")  # Trackastra's own, of files that it leaves open
def test_page_from_folder_to_checkpoint(clip, folder, tiny_model, tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLES / "train_trackastra.py"))["main"]
    small = ["--size", "64", "--frames", "5", "--method", "procedural", "--nuclei", "4", "6"]
    small += ["--width", "16", "--clips", "3", "--model", str(tiny_model)]
    given = [*small, "--real", str(folder), "--output", str(tmp_path / "linker")]
    first = main([*given, "--steps", "1"])
    assert "after 1 steps" in capsys.readouterr().out
    # The same command goes on where the other stopped.
    again = main([*given, "--steps", "2"])
    assert [step for step, _ in again.log.held_out] == [1, 2]
    assert first.settings.window == again.settings.window == 4
    text = (EXAMPLES.parent / "docs" / "trackastra.md").read_text()
    names = {}
    exec(compile(text.split("```python\n")[1].split("```")[0], "trackastra.md", "exec"), names)
    _, tracked = names["track"](
        tmp_path / "linker", clip["video"][:, 0].numpy(), clip["masks"].numpy()
    )
    assert tracked.shape == clip["masks"].shape
