import itertools
import logging
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch

from bvdm_data.adapters.trackastra import make_transformer, mend_trackastra
from bvdm_data.clip import annotate_masks
from bvdm_data.datasets.detections import DetectionErrors
from bvdm_data.evaluation import linker as linking
from bvdm_data.evaluation.linker import (
    Decoding,
    LinkerSettings,
    _make_views,
    augment_window,
    decode_links,
    keep_within_gap,
    link,
    load_linker,
    make_clip_windows,
    predict_links,
    save_linker,
    train_linker,
)
from bvdm_data.evaluation.seg_tra import score
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.rng import torch_rng
from bvdm_data.system import require

Trackastra = require("trackastra.model").Trackastra


def a_clip(seed=0, frames=5, size=96):
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    masks = np.zeros((frames, size, size), np.int32)
    places = np.array([[22, 22], [22, 72], [72, 22], [72, 72]]) + draws.integers(-4, 5, (4, 2))
    speed = draws.uniform(-1, 1, (4, 2))
    for frame in range(frames):
        for number, (row, column) in enumerate(places + frame * speed):
            if number == 3 and frame >= 2:
                for one, side in ((5, -7), (6, 7)):
                    masks[frame][np.hypot(y - row - side, x - column) < 5] = one
            else:
                masks[frame][np.hypot(y - row, x - column) < 7] = number + 1
    last = frames - 1
    table = [[n, 0, last, 0] for n in (1, 2, 3)]
    table += [[4, 0, 1, 0], [5, 2, last, 4], [6, 2, last, 4]]
    video = 0.1 + 0.05 * masks + draws.normal(0, 0.002, masks.shape)
    return {
        "video": torch.from_numpy(video.astype(np.float32))[:, None],
        **annotate_masks(masks, np.array(table, np.int32), ("masks", "tracks"), 9),
        "index": torch.tensor(seed),
        "source": torch.tensor(1, dtype=torch.int8),
    }


@pytest.fixture(scope="module")
def clips():
    return [a_clip(seed) for seed in range(6)]


def settings(steps, **changes):
    training = {"batch": 4, "rate": 3e-3, "average": 0.9, "save_every": 3, "check_every": 100}
    return LinkerSettings(
        width=32, heads=2, layers=1, window=3, attention=64, errors=None,
        training=TrainingSettings(steps=steps, **(training | changes)),
    )  # fmt: skip


def test_windows_link_ancestors_only():
    clip = a_clip()
    windows = make_clip_windows(clip, 3)
    times = [one["timepoints"].unique().tolist() for one in windows]
    assert times == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    window = windows[0]
    ids = window["labels"].tolist()
    assert len(ids) == 4 + 4 + 5
    for i, first in enumerate(ids):
        for j, second in enumerate(ids):
            family = first == second or {first, second} in ({4, 5}, {4, 6})
            assert window["assoc_matrix"][i, j] == family
    assert window["features"].shape == (13, 7)
    where = np.argwhere(clip["masks"][0].numpy() == 1)
    assert torch.allclose(window["coords"][0], torch.tensor(where.mean(0)).float(), atol=1e-4)
    diameter = np.sqrt(4 / np.pi * len(where))
    assert float(window["features"][0, 0]) == pytest.approx(diameter, rel=1e-5)


def test_windows_without_links_are_skipped():
    clip = a_clip()
    empty = clip["masks"].clone()
    empty[1:] = 0
    tracks = torch.tensor([[n, 0, 0, 0] for n in (1, 2, 3, 4)])
    assert make_clip_windows({**clip, "masks": empty, "tracks": tracks}, 3) == []


def a_clip_with_entry():
    """Return a clip whose fifth nucleus comes out of the border band of 12 px in frame 2."""
    clip = a_clip()
    clip["masks"] = clip["masks"].clone()
    for frame in range(5):
        clip["masks"][frame, 4 : (10, 11, 14, 15, 16)[frame], 45:52] = 9
    clip["tracks"] = torch.cat([clip["tracks"], torch.tensor([[9, 0, 4, 0]])])
    return clip


def test_views_hide_the_border_band():
    clip, given = a_clip_with_entry(), replace(settings(1), errors=DetectionErrors(), border=12)
    begins = []
    for index in range(30):
        for view in _make_views(clip, given, index):
            shown = view["masks"] > 0
            entry = view["tracks"][view["masks"][4, 15, 48] - 1].tolist()
            begins.append(entry[1])
            assert entry[2:] == [4, 0]
            assert shown[entry[1] :].equal((clip["masks"] > 0)[entry[1] :])
            assert shown.sum(dim=(1, 2)).bool().all()
            assert sorted(view["tracks"][:, 3].tolist()).count(0) == 5  # and two daughters
    assert {*begins} == {0, 2}
    assert 0.5 < begins.count(2) / len(begins) < 0.85
    assert _make_views(clip, replace(given, errors=None), 0) == [clip]


def test_views_have_few_and_many_errors():
    clip, nuclei = a_clip(frames=20), 4 + 4 + 18 * 5
    given = replace(settings(1), errors=DetectionErrors(missed=0.5), border=0)
    shares = []
    for index in range(8):
        views = [
            len(torch.unique(m)) - 1 for v in _make_views(clip, given, index) for m in v["masks"]
        ]
        shares.append([1 - sum(views[:20]) / nuclei, 1 - sum(views[20:]) / nuclei])
    few, many = np.array(shares).T
    assert few.mean() == pytest.approx(0.05, abs=0.02)
    assert many.mean() == pytest.approx(0.5, abs=0.15)
    assert many.min() > 0.15
    assert many.max() < 0.85
    assert many.std() > 0.1


def test_windows_refuse_short_or_untracked_clips():
    clip = a_clip(frames=4)
    with pytest.raises(ValueError, match="window must be at most the 4 frames of a clip, got 5"):
        make_clip_windows(clip, 5)
    del clip["tracks"]
    with pytest.raises(ValueError, match="clip must have the key 'tracks', got"):
        make_clip_windows(clip, 3)


@pytest.fixture
def exact(monkeypatch):
    """Measure nuclei of training windows without errors."""
    monkeypatch.setattr(linking, "SHAKE", 0.0)
    monkeypatch.setattr(linking, "NOISE", 0.0)


@pytest.mark.usefixtures("exact")
def test_augment_window_matches_turned_image():
    clip = a_clip()
    window = make_clip_windows(clip, 3)[0]
    # A varied window must keep the shape of the scene and the laws between place and features.
    for seed in range(4):
        varied = augment_window(window, torch_rng(seed, "test"))
        before, after = torch.pdist(window["coords"]), torch.pdist(varied["coords"])
        size = (after / before).mean()
        assert torch.allclose(after, size * before, rtol=1e-3)
        assert torch.allclose(
            varied["features"][:, 0], size * window["features"][:, 0].float(), rtol=1e-3
        )
        old, new = (one["features"][:, 2:6].float().view(-1, 2, 2) for one in (window, varied))
        traces = [torch.einsum("nii->n", one) for one in (old, new)]
        assert torch.allclose(traces[1], size**2 * traces[0], rtol=1e-3)
        assert torch.allclose(new.det(), size**4 * old.det(), rtol=1e-2)
        assert torch.equal(varied["assoc_matrix"], window["assoc_matrix"])
        assert varied["coords"].min() >= 0
    same = augment_window(window, torch_rng(3, "test"))
    assert torch.equal(same["coords"], varied["coords"])


@pytest.mark.usefixtures("exact")
def test_augment_window_turns_the_inertia():
    # Two dots of a long thin nucleus tell its direction.
    masks = torch.zeros(3, 60, 60, dtype=torch.int32)
    masks[:, 10:50, 28:31] = 1
    tracks = torch.tensor([[1, 0, 2, 0]])
    long = {"video": masks[:, None].float(), "masks": masks, "tracks": tracks}
    window = make_clip_windows(long, 3)[0]
    window["coords"] = torch.tensor([[10.0, 29.0], [50.0, 29.0], [30.0, 29.0]])
    for seed in range(6):
        varied = augment_window(window, torch_rng(seed, "test"))
        axis = varied["coords"][1] - varied["coords"][0]
        inertia = varied["features"][0, 2:6].view(2, 2)
        # The moment of inertia is smallest about the long axis.
        values, vectors = torch.linalg.eigh(inertia)
        assert values[0] < values[1] / 10
        aligned = (vectors[:, 0] @ axis / axis.norm()).abs()
        assert float(aligned) == pytest.approx(1, abs=1e-3)


def test_augment_window_errs_in_measurements(monkeypatch):
    window = make_clip_windows(a_clip(), 3)[0]
    varied = [augment_window(window, torch_rng(seed, "test")) for seed in range(300)]
    monkeypatch.setattr(linking, "SHAKE", 0.0)
    monkeypatch.setattr(linking, "NOISE", 0.0)
    # Turn, zoom and place take the numbers before.
    exact = [augment_window(window, torch_rng(seed, "test")) for seed in range(300)]
    moved, factor = (
        torch.stack([one[key] - other[key] if key == "coords" else (one[key] / other[key]).log()
                     for one, other in zip(varied, exact, strict=True)])
        for key in ("coords", "features")
    )  # fmt: skip
    assert float(moved.std()) == pytest.approx(1, abs=0.03)
    diameter, grey, shape = factor[..., 0], factor[..., 1], factor[..., 2]
    assert float(diameter.std()) == pytest.approx(0.05, rel=0.05)
    assert float(grey.std()) == pytest.approx(0.1, rel=0.05)
    # A nucleus that is measured too large has too large moments, too.
    assert float((shape - 2 * diameter).std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(varied[0]["features"][:, 6], exact[0]["features"][:, 6])


def test_keep_within_gap_spans_given_frames():
    times = torch.tensor([0, 1, 1, 2, 3])
    assert keep_within_gap(times).nonzero().tolist() == [[0, 1], [0, 2], [1, 3], [2, 3], [3, 4]]
    assert keep_within_gap(times, 2).int().tolist() == [
        [0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0],
    ]


@pytest.fixture(scope="module")
def trained(clips, tmp_path_factory):
    place = tmp_path_factory.mktemp("linker") / "linker.safetensors"
    return train_linker(clips, settings(120, check_every=20), checkpoint=place, progress=False)


@pytest.fixture
def nearest(trained, monkeypatch):
    """Return a linker whose network holds the nearest nucleus of a frame for the mother."""

    def forward(coords, features=None, padding_mask=None):
        return 40 - torch.cdist(coords[..., 1:], coords[..., 1:])

    monkeypatch.setattr(trained.network, "forward", forward)
    return trained


def renumbered(masks):
    """Give the nuclei other numbers in every frame, so that only their outlines tell."""
    names = [np.r_[0, 1 + np.random.default_rng(f).permutation(20)] for f in range(len(masks))]
    return np.stack([new[frame] for new, frame in zip(names, masks, strict=True)])


def test_training_lowers_the_loss(trained):
    losses = [loss for _, loss in trained.log.held_out]
    assert losses[0] > losses[1] > losses[2]
    assert not trained.network.training


def test_trained_linker_gives_valid_tracks(trained):
    clip = a_clip(99)
    masks = clip["masks"].numpy()
    found = link(trained, clip["video"][:, 0].numpy(), renumbered(masks))
    scores = score(*found, masks, clip["tracks"].numpy())
    assert scores.valid == scores.seg == scores.det == 1


@pytest.mark.parametrize("method", ["assignment", "greedy", "ilp"])
def test_link_follows_network_through_division(nearest, method):
    clip = a_clip(99)
    masks = clip["masks"].numpy()
    given = clip["video"][:, 0].numpy(), renumbered(masks)
    found = link(nearest, *given, Decoding(method=method, split=0.3))
    scores = score(*found, masks, clip["tracks"].numpy())
    assert (scores.valid, scores.lnk, scores.bc, scores.tra) == (1, 1, 1, 1)


def test_links_are_little_longer_than_learned(clips, nearest):
    longest = 0.0
    for clip in clips[:5]:
        places = [
            {n: np.argwhere(frame == n).mean(0) for n in np.unique(frame[frame > 0]).tolist()}
            for frame in clip["masks"].numpy()
        ]
        for before, after in itertools.pairwise(places):
            steps = [after[n] - before[4 if n > 4 and n not in before else n] for n in after]
            longest = max(longest, *np.hypot(*np.transpose(steps)))
    assert nearest.settings.reach == pytest.approx(1.5 * longest, rel=1e-4)
    clip = a_clip(99)
    video, masks = clip["video"][:, 0].numpy(), clip["masks"].numpy()

    def find_longest(linker):
        graph = predict_links(linker, video, masks)
        at = {name: np.array(known["coords"])[-2:] for name, known in graph.nodes.items()}
        return max(np.hypot(*(at[a] - at[b])) for a, b in graph.edges)

    near = replace(nearest, settings=replace(nearest.settings, reach=5.0))
    assert find_longest(near) <= 5 < find_longest(nearest) <= nearest.settings.reach


def test_turned_film_has_same_links(trained):
    clip = a_clip(99)
    video, masks = clip["video"][:, 0].numpy(), clip["masks"].numpy()

    def list_links(change):
        graph = predict_links(trained, *(np.ascontiguousarray(change(x)) for x in (video, masks)))
        nodes = {name: (at["time"], at["label"]) for name, at in graph.nodes.items()}
        return {(nodes[a], nodes[b]): p for a, b, p in graph.edges(data="weight")}

    wanted = list_links(lambda x: x)
    assert len(wanted) > 15
    for change in (
        lambda x: np.rot90(x, axes=(1, 2)),
        lambda x: x[:, ::-1],
        lambda x: x.swapaxes(1, 2),
    ):
        assert list_links(change) == pytest.approx(wanted, rel=1e-3)


def make_graph(*edges):
    graph = nx.DiGraph()
    for name in {name for edge in edges for name in edge[:2]}:
        graph.add_node(name, time="ab".index(name[0]), label=int(name[1]))
    graph.add_weighted_edges_from(edges)
    return graph


def test_assignment_is_the_best_in_all():
    masks = np.array([[[1, 2, 0]], [[1, 2, 3]]])
    # Greedily a1 takes b1, and a2, which has no other, nothing: .9 against .8 * .7.
    graph = make_graph(("a1", "b1", 0.9), ("a1", "b2", 0.8), ("a2", "b1", 0.7), ("a1", "b3", 0.4))
    tracks = decode_links(graph, masks, Decoding())
    assert tracks[1].tolist() == [[1, 0, 1, 0], [2, 0, 1, 0], [3, 1, 1, 0]]
    assert tracks[0][:, 0].tolist() == [[1, 2, 0], [2, 1, 3]]
    _, table = decode_links(graph, masks, Decoding(split=0.3))
    assert sorted(table[:, 3].tolist()) == [0, 0, 1, 1]
    _, table = decode_links(graph, masks, Decoding(link=0.75, split=0.85))
    assert table[:, 2].tolist() == [1, 0, 1, 1]


@pytest.mark.filterwarnings("ignore")  # its own, of files that it leaves open
def test_trackastra_loads_what_is_saved(trained, tmp_path, monkeypatch):
    clip = a_clip(99)
    video, masks = clip["video"][:, 0].numpy(), clip["masks"].numpy()
    expected = dict_links(predict_links(trained, video, masks))
    save_linker(trained, tmp_path)
    again = load_linker(tmp_path)
    assert again.settings == trained.settings
    assert dict_links(predict_links(again, video, masks)) == expected
    # Trackastra's own layers compute something else, until they are mended.
    model = Trackastra.from_folder(tmp_path, device="cpu")
    stock = replace(again, network=model.transformer.eval())
    assert dict_links(predict_links(stock, video, masks)) != expected
    mended, reach = mend_trackastra(mend_trackastra(model)), trained.settings.reach
    graph, _ = mended.track(video, masks.copy(), max_distance=reach)
    # Trackastra itself looks at a film once, as it lies.
    monkeypatch.setattr(linking, "_turn", lambda window, _: window)
    once = dict_links(predict_links(again, video, masks))
    assert {edge: once[edge] for edge in graph.edges} == pytest.approx(dict_links(graph), rel=1e-5)
    assert graph.edges


def dict_links(graph):
    return {(source, target): p for source, target, p in graph.edges(data="weight")}


@pytest.mark.filterwarnings("ignore")
def test_own_layers_need_no_mending(clips, tmp_path):
    errors = DetectionErrors(missed=0.2, outline=1.0)
    given = replace(
        settings(30, rate=1e-5), pre_norm=False, gap=2, errors=errors, border=5, reach=30.0
    )
    plain = train_linker(clips, given, checkpoint=tmp_path / "a", progress=False)
    save_linker(plain, tmp_path)
    assert load_linker(tmp_path).settings == given
    stock = Trackastra.from_folder(tmp_path, device="cpu").transformer.eval()
    window = make_clip_windows(a_clip(99), 3)[0]
    places = torch.cat([window["timepoints"][:, None].float(), window["coords"].float()], 1)[None]
    features = window["features"].float()[None]
    assert torch.equal(stock(places, features), plain.network(places, features))
    highest = [float(one.detach().max()) for one in stock.feat_embed.freqs]
    assert highest[1] > 20  # that of Trackastra itself is 1
    config = tmp_path / "train_config.yaml"
    config.write_text("features: wrfeat\n")
    with pytest.raises(ValueError, match="must be written by save_linker, got another"):
        load_linker(tmp_path)


def test_mended_layers_keep_the_sum():
    network = make_transformer(pre_norm=True, feature_frequencies=True, d_model=16, nhead=2)
    for layer in (*network.encoder, *network.decoder):
        for last in (layer.attn.proj, layer.mlp.fc2):
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
    # Branches that add nothing change nothing, at any scale of the stream.
    stream, places = 5 + 3 * torch.randn(1, 6, 16), torch.rand(1, 6, 3)
    assert torch.equal(network.encoder[0](stream, coords=places), stream)
    assert torch.equal(network.decoder[0](stream, stream, coords=places), stream)
    shortest = [4 / float(one.detach().max()) for one in network.feat_embed.freqs]
    # 6 px of diameter, .15 of grey, 22 px^2 of inertia: waves that tell nuclei apart.
    assert shortest == pytest.approx([160 / 27, 4 / 27, *4 * [600 / 27], 4 / 27])
    longest = [4 / float(one.detach().min()) for one in network.feat_embed.freqs]
    assert longest == pytest.approx([160, 4, *4 * [600], 4])


def test_frames_do_not_move_nuclei(trained):
    window = make_clip_windows(a_clip(99), 3)[0]
    coords = torch.cat([window["timepoints"][:, None].float(), window["coords"].float()], 1)[None]
    given = window["features"].float()[None], torch.zeros(coords.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        wanted = trained.network(coords, *given)
        late = trained.network(coords + torch.tensor([500.0, 0, 0]), *given)
        moved = trained.network(coords - torch.tensor([0, 500.0, 500.0]), *given)
        # What is filled up is in frame 0.
        filled = torch.nn.functional.pad(coords + torch.tensor([500.0, 0, 0]), (0, 0, 0, 2))
        features = torch.nn.functional.pad(given[0], (0, 0, 0, 2))
        absent = torch.nn.functional.pad(given[1], (0, 2), value=True)
        longer = trained.network(filled, features, absent)[:, :-2, :-2]
    assert torch.allclose(late, wanted, atol=1e-4)
    assert torch.allclose(longer, wanted, atol=1e-3)
    assert not torch.allclose(moved, wanted, atol=0.1)


def test_other_versions_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.6.0")
    with pytest.raises(ImportError, match=r"trackastra must be 0\.5, .* got 0\.6\.0; pip install"):
        make_transformer(pre_norm=True, feature_frequencies=True)
    monkeypatch.undo()
    with pytest.raises(TypeError, match="model must be a Trackastra, got str; give"):
        mend_trackastra("folder")


def test_link_takes_a_frame_without_nuclei(nearest):
    clip = a_clip(98)
    masks = clip["masks"].numpy().copy()
    masks[2] = 0
    found, table = link(nearest, clip["video"][:, 0].numpy(), masks)
    assert np.array_equal(found > 0, masks > 0)
    assert sorted(table[:, 1:].tolist()) == [[0, 1, 0]] * 4 + [[3, 4, 0]] * 5
    nothing = link(nearest, clip["video"][:, 0].numpy(), 0 * masks)
    assert nothing[1].shape == (0, 4)


def test_link_refuses_other_shapes(trained):
    video = np.zeros((3, 8, 8), np.float32)
    with pytest.raises(ValueError, match="F at least 2"):
        link(trained, video[:1], video[:1].astype(int))
    with pytest.raises(ValueError, match="of one shape"):
        link(trained, video, video[:2].astype(int))


def test_linker_training_resumes(clips, tmp_path, monkeypatch):
    whole = train_linker(clips, settings(6), checkpoint=tmp_path / "a", progress=False)
    calls = []
    honest = linking._compute_loss

    def killed(*given):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return honest(*given)

    monkeypatch.setattr(linking, "_compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train_linker(clips, settings(6), checkpoint=tmp_path / "b", progress=False)
    monkeypatch.undo()
    torch.rand(3)  # the global random state plays no part
    resumed = train_linker(clips, settings(6), checkpoint=tmp_path / "b", progress=False)
    for one, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole.log.train == resumed.log.train


def test_linker_training_leaves_globals_alone(clips, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    train_linker(clips, settings(1), checkpoint=tmp_path / "a", progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)


def test_linker_refuses_other_checkpoints(clips, tmp_path):
    place = tmp_path / "a"
    train_linker(clips, settings(1), checkpoint=place, progress=False)
    for others in ((clips[:-1], settings(1)), (clips, settings(1, seed=1))):
        with pytest.raises(ValueError, match="belongs to a training with other data or settings"):
            train_linker(*others, checkpoint=place, progress=False)


def test_linker_refuses_untrainable_clips(clips, tmp_path):
    with pytest.raises(ValueError, match=r"clips must hold at least 2 .*got 1"):
        train_linker(clips[:1], settings(1), checkpoint=tmp_path / "a", progress=False)
    empty = [{**clip, "masks": 0 * clip["masks"], "tracks": 0 * clip["tracks"]} for clip in clips]
    with pytest.raises(ValueError, match="clips must show nuclei in two frames in a row"):
        train_linker(empty, settings(1), checkpoint=tmp_path / "b", progress=False)

    for changes, words in (
        ({"method": "best"}, "method must be 'assignment', 'greedy' or 'ilp', got 'best'"),
        ({"split": 0.0}, "link and split must be probabilities above 0, got 0.05 and 0.0"),
    ):
        with pytest.raises(ValueError, match=words):
            Decoding(**changes)
    for changes, words in (
        ({"window": 1}, "window must be at least 2 frames, got 1"),
        ({"width": 36}, "width a multiple of 2 . heads, got .*width=36"),
        ({"gap": 4}, "gap must be from 1 to below window=4, got 4"),
        ({"layers": 0}, "layers and heads must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            LinkerSettings(**changes)
