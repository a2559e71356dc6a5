"""DeviceLoader: on the CPU the bytes of DataLoader; rendering in batches is tried there, too."""

import gc
import pickle
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, get_worker_info

from bvdm_data import DeviceLoader, FastSettings, PoolSettings, SyntheticHeLaVideos, weights
from bvdm_data.clip import ANNOTATIONS, annotate_masks
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets import device_loader
from bvdm_data.datasets.prefetch import DeviceStream, Prefetcher
from bvdm_data.synth import synthesis
from bvdm_data.synth.cell_bank import CellBank
from bvdm_data.synth.render import map_tensors

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
CPU = torch.device("cpu")


@pytest.fixture
def tiny(tiny_model):
    """Make a data set of small clips; the keywords replace arguments."""

    def tiny(**changes):
        arguments = {
            "frames": 3, "size": (56, 64), "model": tiny_model, "nuclei": 3, "max_cells": 32,
            "annotations": ANNOTATIONS, "batch_size": 2, "length": 5,
        }  # fmt: skip
        return SyntheticHeLaVideos(**arguments | changes)

    return tiny


@pytest.fixture(scope="module")
def quiet_model(tiny_generator, tmp_path_factory):
    """Return the file of a model whose camera adds neither noise nor a random background."""
    path = tmp_path_factory.mktemp("quiet") / "quiet.safetensors"
    camera = replace(tiny_generator.camera, noise=0.0, field_spread=0.0, level_spread=0.0)
    weights.save(replace(tiny_generator, camera=camera), path)
    return path


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    gc.collect()
    assert [t for t in threading.enumerate() if t.name == "bvdm_data ahead"] == []


def on_cpu(videos, batch_size=2, **how):
    return DeviceLoader(videos, batch_size=batch_size, device="cpu", **how)


def numbers(batches):
    return [batch["index"].tolist() for batch in batches]


def same(one, other):
    return list(one) == list(other) and all(
        one[key].dtype == other[key].dtype
        and torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9))
        for key in one
    )


def assert_same(found, wanted):
    found, wanted = list(found), list(wanted)
    assert len(found) == len(wanted) > 0
    assert all(same(*pair) for pair in zip(found, wanted, strict=True))


def darker(clip):
    """Turn a clip by chance, and make it darker."""
    if torch.rand(()) < 0.5:
        clip["video"] = clip["video"] * 0.5
    clip["video"] = clip["video"] * torch.rand(())
    return clip


# The bytes of DataLoader


@pytest.mark.parametrize(
    ("workers", "pool", "batch_size"),
    [
        (0, None, 2),
        (2, None, None),
        (0, PoolSettings(pairs=3), None),
        (1, PoolSettings(pairs=3), 2),
    ],
)
def test_cpu_batches_equal_those_of_dataloader(tiny, workers, pool, batch_size):
    videos = tiny(pool=pool, batch_size=batch_size or 1)
    wanted = list(DataLoader(videos, batch_size=batch_size, num_workers=0))
    with on_cpu(videos, batch_size, num_workers=workers) as loader:
        assert_same(loader, wanted)
        # A second loop goes over the same clips, a pool being filled or not.
        assert_same(loader, wanted)
        assert len(loader) == len(DataLoader(videos, batch_size=batch_size)) == len(wanted)


def test_bank_of_videos_stays_unused(tiny, together):
    # Two threads that fill one pool would get in each other's way.
    videos = tiny(pool=PoolSettings(pairs=3))
    list(on_cpu(videos))
    assert videos._pool._pairs == {}


def test_all_clips_can_be_loaded(tiny):
    for changes in (
        {"method": FastSettings(families=False), "nuclei": 0}, {"annotations": ()},
        {"variation": 0, "nuclei": (0, 4), "frames": 1},
    ):  # fmt: skip
        videos = tiny(**changes)
        assert_same(on_cpu(videos), DataLoader(videos, batch_size=2))


@pytest.mark.parametrize(("annotations", "batch_size"), [(ANNOTATIONS, 2), (("tracks",), None)])
def test_transform_does_the_same(tiny, annotations, batch_size):
    videos = tiny(transform=darker, annotations=annotations, batch_size=batch_size or 1, length=3)
    before, states, found = torch.get_rng_state(), [], []
    for loader in (on_cpu(videos, batch_size), DataLoader(videos, batch_size=batch_size)):
        torch.set_rng_state(before)
        found.append(list(loader))
        states.append(torch.get_rng_state())
    assert_same(*found)
    # A loop of DataLoader draws the seed of its workers, and nothing else is drawn.
    assert torch.equal(*states)


@pytest.mark.heavy
def test_transform_is_not_sent_to_workers(tiny):
    videos = tiny(transform=lambda clip: {**clip, "process": get_worker_info() is None}, length=2)
    with on_cpu(videos, num_workers=1, multiprocessing_context="spawn") as loader:
        (batch,) = loader
    assert batch["process"].tolist() == [True, True]
    videos.transform = None
    (wanted,) = DataLoader(videos, batch_size=2)
    assert torch.equal(batch["video"], wanted["video"])


@pytest.mark.heavy
def test_spawned_workers_take_the_place(tiny):
    videos = tiny(length=6)
    with on_cpu(videos, num_workers=1, multiprocessing_context="spawn") as loader:
        videos.set_epoch(4)
        loader.load_state_dict(videos.state_dict(consumed=2))
        first, last = loader
    assert [*first["index"], *last["index"]] == [2, 3, 4, 5]
    assert torch.equal(first["video"][0], videos.clip(2)["video"])


def test_loader_is_pickled_after_a_loop(tiny):
    loader = on_cpu(tiny())
    wanted = list(loader)
    assert_same(pickle.loads(pickle.dumps(loader)), wanted)


def test_unknown_batch_size_and_drop_last(tiny):
    videos = tiny(batch_size=None)
    assert_same(on_cpu(videos, num_workers=2), DataLoader(videos, batch_size=2, num_workers=2))
    assert numbers(on_cpu(tiny(), drop_last=True)) == [[0, 1], [2, 3]]


# Epochs, ranks, places


def test_new_epoch_reaches_kept_workers(tiny):
    videos = tiny()
    with on_cpu(videos, num_workers=2, persistent_workers=True) as loader:
        for epoch in (0, 3):
            videos.set_epoch(epoch)
            assert_same(loader, DataLoader(videos, batch_size=2))


def test_ranks_split_the_clips(tiny):
    loaders = [on_cpu(tiny(shard=(rank, 2)), num_workers=rank) for rank in (0, 1)]
    assert [numbers(loader) for loader in loaders] == [[[0, 2], [4]], [[1, 3], [0]]]
    assert [len(loader) for loader in loaders] == [2, 2]


def test_endless_stream_has_no_length(tiny):
    loader = on_cpu(tiny(length=None), num_workers=2)
    loop = iter(loader)
    assert numbers(next(loop) for _ in range(4)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(TypeError, match="this SyntheticHeLaVideos is endless and has no len"):
        len(loader)


@pytest.mark.parametrize(("workers", "kept", "steps"), [(0, False, 3), (2, False, 0), (2, True, 3)])
def test_loop_resumes_from_its_state(tiny, workers, steps, kept):
    videos = tiny(length=7)
    videos.set_epoch(2)
    whole = numbers(on_cpu(videos))
    loader = on_cpu(videos, num_workers=workers, persistent_workers=kept)
    loop = iter(loader)
    seen = numbers(next(loop) for _ in range(steps))
    state = loader.state_dict()
    assert state.items() >= {"epoch": 2, "seed": 0, "start": 2 * steps}.items()
    assert state == videos.state_dict(consumed=2 * steps)
    fresh = tiny(length=7)
    others = on_cpu(fresh, num_workers=workers, persistent_workers=kept)
    others.load_state_dict(state)
    assert fresh.epoch == 2
    assert seen + numbers(others) == whole
    # Only the next loop goes on there.
    assert numbers(others) == whole
    plain = tiny(length=7)
    plain.load_state_dict(state)
    assert seen + numbers(DataLoader(plain, batch_size=2)) == whole
    # The same loader can go back, too.
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    assert seen + numbers(loader) == whole
    assert numbers(DataLoader(videos, batch_size=2)) == whole


def test_new_epoch_resets_the_state(tiny):
    videos = tiny()
    loader = on_cpu(videos)
    next(iter(loader))
    videos.set_epoch(1)
    assert loader.state_dict().items() >= {"epoch": 1, "seed": 0, "start": 0}.items()
    assert loader.state_dict(consumed=2)["start"] == 2


def test_videos_do_not_know_position(tiny):
    videos = tiny()
    loop = iter(on_cpu(videos))
    next(loop)
    with pytest.raises(RuntimeError, match="consumed must be given"):
        videos.state_dict()
    loader = on_cpu(tiny(batch_size=None))
    next(iter(loader))
    with pytest.raises(ValueError, match="give the data set the batch_size of the loader"):
        loader.state_dict()


def test_set_epoch_in_a_loop_fails(tiny):
    videos = tiny(length=None)
    loop = iter(on_cpu(videos))
    next(loop)
    videos.set_epoch(1)
    with pytest.raises(RuntimeError, match="in the middle of a pass over epoch 0"):
        list(loop)


# Errors


@pytest.mark.parametrize("batched", [False, True])
def test_error_names_the_clip(tiny, batched, request, monkeypatch):
    def annotate(masks, table, *how):
        if len(table) > 3:
            raise ValueError("more than three")
        return annotate_masks(masks, table, *how)

    monkeypatch.setattr(synthesis, "annotate_masks", annotate)
    if batched:
        request.getfixturevalue("together")
    videos = tiny(length=40, nuclei=(0, 3))
    loader = on_cpu(videos, num_workers=int(batched))
    loop = iter(loader)
    with pytest.raises(
        ValueError, match=r"more than three\. It is clip \d+ of epoch 0 of Synthetic"
    ):
        for _ in loop:
            pass
    assert list(loop) == []
    videos.set_epoch(0)
    assert next(iter(loader))["index"].tolist() == [0, 1]


def test_device_error_names_the_batch(tiny, together, monkeypatch):
    def render(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(device_loader.BatchRenderer, "render", render)
    videos = tiny()
    videos.set_epoch(4)
    words = r"memory ran out.*batch of the clips 0, 1 of epoch 4 .*seed=0\); to make them one by"
    with pytest.raises(RuntimeError, match=words):
        next(iter(on_cpu(videos)))


@pytest.mark.parametrize(
    ("changes", "given", "error", "words"),
    [
        ({"method": "procedural"}, {}, ValueError, "videos must have the method 'fast'.*Procedur"),
        ({}, {"batch_size": 3}, ValueError, "batch_size must be that of videos, 2, got 3"),
        ({}, {"batch_size": None}, ValueError, "batch_size must be that of videos, 2, got None"),
        ({}, {"prefetch": 0}, ValueError, "prefetch must be 1 or more, got 0"),
        ({}, {"device": "meta"}, ValueError, "device must be a CUDA device or 'cpu', got 'meta'"),
        ({"device": "meta"}, {}, ValueError, "videos must have device='cpu'.*got device='meta'"),
        ({}, {"pictures": 8}, ValueError, "pictures must be None with device='cpu'"),
        ({}, {"shuffle": True}, TypeError, "only drop_last, .*, got 'shuffle'"),
    ],
)
def test_wrong_arguments_are_refused(tiny, changes, given, error, words):
    with pytest.raises(error, match=words):
        DeviceLoader(tiny(**changes), **{"batch_size": 2, "device": "cpu"} | given)
    with pytest.raises(TypeError, match=r"videos must be SyntheticHeLaVideos, got \[\]"):
        DeviceLoader([], device="cpu")


# Ends


def test_new_loop_closes_the_last(tiny):
    loader = on_cpu(tiny())
    first = iter(loader)
    next(first)
    assert numbers(loader) == [[0, 1], [2, 3], [4]]
    with pytest.raises(RuntimeError, match="a new one was begun"):
        next(first)


def test_close_ends_all_workers(tiny):
    with on_cpu(tiny(length=None), num_workers=2, persistent_workers=True) as loader:
        loop = iter(loader)
        next(loop)
        assert len(torch.multiprocessing.active_children()) == 2
        loader.close()
        assert torch.multiprocessing.active_children() == []
        assert next(iter(loader))["index"].tolist() == [0, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_abandoned_loop_ends_thread_and_workers(tiny, workers):
    def leave():
        loader = on_cpu(tiny(length=None), num_workers=workers)
        for batch in loader:
            assert batch["index"].tolist() == [0, 1]
            return

    leave()
    gc.collect()
    assert [t for t in threading.enumerate() if t.name == "bvdm_data ahead"] == []
    assert torch.multiprocessing.active_children() == []


def test_loop_outlives_its_loader(tiny):
    loop = iter(on_cpu(tiny(), num_workers=1, persistent_workers=True))
    gc.collect()
    assert numbers(loop) == [[0, 1], [2, 3], [4]]


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [0, 1])
def test_interpreter_exits_in_a_loop(tiny_model, workers):
    script = f"""
from bvdm_data import DeviceLoader, SyntheticHeLaVideos
videos = SyntheticHeLaVideos(frames=2, size=48, nuclei=1, model={str(tiny_model)!r})
loop = iter(DeviceLoader(videos, device="cpu", num_workers={workers}))
print(next(loop)["index"].tolist(), flush=True)
"""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0]\n", "")


# Painted together


@pytest.fixture
def together(monkeypatch):
    """Let loaders render on the CPU as they would on another device."""

    def make(videos, method, device, _):
        bank = None if videos.pool is None else CellBank(videos.pool, videos.seed)
        shape = (videos.frames, *videos.size)
        return device_loader.BatchRenderer(
            weights.load(videos.model), method, shape, device, batch_size=16, bank=bank
        )

    monkeypatch.setattr(device_loader, "_make_renderer", make)


@pytest.mark.parametrize(("workers", "pool"), [(0, PoolSettings(pairs=3)), (2, None), (2, True)])
def test_device_changes_single_counts(tiny, together, workers, pool, quiet_model):
    for model in ({}, {"model": quiet_model}):
        videos = tiny(pool=pool, length=4, **model)
        found = list(on_cpu(videos, num_workers=workers))
        wanted = list(DataLoader(videos, batch_size=2))
        for one, other in zip(found, wanted, strict=True):
            assert list(one) == list(other)
            assert one["video"].shape == other["video"].shape
            assert one["video"].dtype == other["video"].dtype
            assert same(*({**batch, "video": torch.zeros(1)} for batch in (one, other)))
            apart = ((one["video"] - other["video"]) * 4095).round().abs()
            assert apart.max() <= 1
            assert (apart > 0).float().mean() < 0.01
            for place in range(2):
                check_clip({key: value[place] for key, value in one.items()})


def count_bytes(record):
    sizes = []
    map_tensors(record, lambda tensor: sizes.append(tensor.nbytes))
    return sum(sizes)


@pytest.mark.parametrize("nuclei", [0, 3])
def test_masks_travel_as_runs(tiny, together, nuclei):
    videos = tiny(length=2, nuclei=nuclei)
    (batch,) = on_cpu(videos)
    for number, masks in enumerate(batch["masks"]):
        assert masks.dtype == torch.int32
        assert torch.equal(masks, videos.clip(number)["masks"])


def test_clips_travel_in_few_bytes():
    videos = SyntheticHeLaVideos(annotations=("masks", "tracks"), length=4, nuclei=8)
    stream = device_loader.SceneStream(videos, videos.method, render=False)
    assert count_bytes(stream.collate([stream.draw(number) for number in range(4)])) < 4 * 100_000


def test_device_clip_depends_on_number(tiny, together):
    def clips(batch_size, epoch, **changes):
        videos = tiny(batch_size=batch_size, **changes)
        videos.set_epoch(epoch)
        loader = on_cpu(videos, batch_size)
        return {int(n): v for batch in loader for n, v in zip(batch["index"], batch["video"])}  # noqa: B905

    one, other = clips(2, 1), clips(5, 1)
    assert one.keys() == other.keys() == set(range(5))
    assert all(torch.equal(one[number], other[number]) for number in one)
    assert not torch.equal(one[0], clips(2, 2)[0])
    assert not torch.equal(one[0], clips(2, 1, seed=1)[0])


def test_device_transform_runs_in_the_loop(tiny, together):
    def marked(clip):
        return {**clip, "thread": threading.current_thread() is threading.main_thread()}

    (batch,) = on_cpu(tiny(transform=marked, length=2))
    assert batch["thread"].tolist() == [True, True]


# CUDA's streams, a stand-in for them


class Stream:
    def __init__(self, name, said):
        self.name, self.calls = name, said

    def wait_stream(self, other):
        self.calls.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.calls.append(f"{self.name} waits for {event}")

    def record_event(self):
        self.calls.append(f"event of {self.name}")
        return f"the event of {self.name}"

    def synchronize(self):
        self.calls.append(f"all of {self.name} is done")


@pytest.fixture
def streams(monkeypatch):
    """Put stand-ins in the place of CUDA's streams; return what they are asked for."""
    said, loop = [], None

    def stream(device):
        assert device == torch.device("cuda", 1)
        return Stream("side", said)

    @contextmanager
    def within(stream):
        said.append(f"on {stream.name}")
        yield
        said.append(f"off {stream.name}")

    loop = Stream("loop", said)
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: loop)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: said.append(f"device {device}"))
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda self, by: said.append(f"{len(self)} used by {by.name}"),
    )
    return said


def test_cuda_stream_waits_in_order(tiny, together, monkeypatch, streams):
    cuda = torch.device("cuda", 1)
    monkeypatch.setattr(device_loader, "DeviceStream", lambda _: DeviceStream(cuda))
    videos = tiny(length=2, annotations=("masks",))
    loader = on_cpu(videos)
    assert loader._stream.device == cuda
    # A second loop has the same stream.
    for _ in range(2):
        streams.clear()
        (batch,) = loader
        assert list(batch) == ["video", "masks", "index", "source"]
        order = {said: place for place, said in enumerate(streams)}
        assert streams[:5] == [
            "side waits for loop", "device cuda:1", "on side", "event of side", "off side",
        ]  # fmt: skip
        assert order["loop waits for the event of side"] < order["2 used by loop"]
        assert streams.count("2 used by loop") == 4
        assert streams.count("all of side is done") == 1


@pytest.fixture
def fake_cuda(monkeypatch):
    """Let tensors and networks be on a CUDA device that only pretends to be one."""

    def move(network, *to, **_):
        for module in network.modules() if to else ():
            for name, value in module._parameters.items():
                module._parameters[name] = torch.nn.Parameter(value.detach().to(*to), False)
        return network

    monkeypatch.setattr(torch.nn.Module, "to", move)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda", 7)  # one whose tables are never cached by another test


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported")
@pytest.mark.parametrize("steps", [1, 2])
def test_cuda_rendering_stays_on_device(tiny, steps, request):
    videos = tiny(method=FastSettings(steps=steps), variation=1.0)
    scenes = device_loader.SceneStream(videos, videos.method, render=False)
    batch = scenes.collate([scenes.draw(0), scenes.draw(1)]).scenes
    model, shape = videos._load_model(), (videos.frames, *videos.size)
    assert model.get_denoiser(1).kernels is not None
    # Such tensors have no values: whatever would read one, or mix devices, raises an error.
    device = request.getfixturevalue("fake_cuda")
    renderer = synthesis.BatchRenderer(model, videos.method, shape, device, batch_size=16)
    video = renderer.render(batch)
    assert (video.shape, video.dtype) == ((2, shape[0], 1, *shape[1:]), torch.float32)
    student = renderer.model.get_denoiser(1)
    assert student.inlet.weight.dtype == torch.bfloat16
    assert video.device == student.inlet.weight.device == device
    assert student.kernels is None


# On a GPU


@pytest.fixture
def on_cuda(tiny):
    def on_cuda(videos, **how):
        return DeviceLoader(videos, batch_size=2, device="cuda", **how)

    return on_cuda


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pool", [None, PoolSettings(pairs=3)], ids=["fresh", "pool"])
def test_cuda_changes_single_counts(tiny, on_cuda, workers, pool, quiet_model):
    for model in ({}, {"model": quiet_model}):
        videos = tiny(pool=pool, **model)
        with on_cuda(videos, num_workers=workers) as loader:
            found = [list(loader) for _ in range(2)]
        for one, again, other in zip(*found, DataLoader(videos, batch_size=2), strict=True):
            assert all(value.device.type == "cuda" for value in one.values())
            assert all(torch.equal(one[k].nan_to_num(-9), again[k].nan_to_num(-9)) for k in one)
            for key in set(one) - {"video"}:
                assert torch.equal(one[key].cpu().nan_to_num(-9), other[key].nan_to_num(-9))
            video = one["video"].cpu()
            # The network sums up in another order there, in eight bits.
            torch.testing.assert_close(video, other["video"], rtol=0, atol=0.02)
            torch.testing.assert_close(video * 4095, (video * 4095).round(), rtol=0, atol=1e-3)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("steps", [1, 2])
def test_cuda_rendering_never_waits(tiny, on_cuda, monkeypatch, steps):
    videos = tiny(length=8, method=FastSettings(steps=steps))
    list(on_cuda(videos))  # what is made once may wait
    real = device_loader.BatchRenderer.render

    def strict(self, batch):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return real(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(device_loader.BatchRenderer, "render", strict)
    assert len(list(on_cuda(videos))) == 4


@pytest.mark.gpu
@needs_cuda
def test_busy_cuda_loop_gets_whole_batches(tiny, on_cuda):
    videos = tiny(length=20)
    wanted = [batch["video"].clone() for batch in on_cuda(videos)]
    weights, sums = torch.randn(2000, 2000, device="cuda"), []
    for batch in on_cuda(videos, num_workers=1, prefetch=1):
        for _ in range(20):
            weights = (weights @ weights).tanh()
        sums.append(batch["video"].clone())
        del batch
    assert all(torch.equal(*pair) for pair in zip(sums, wanted, strict=True))


@pytest.mark.gpu
@needs_cuda
def test_cuda_camera_repeats_itself(tiny, on_cuda):
    videos = tiny(length=2)
    one, other = (next(iter(on_cuda(videos, pictures=32)))["video"] for _ in range(2))
    assert torch.equal(one, other)
    assert float((one * 4095 - (one * 4095).round()).abs().max()) < 1e-3


# The prefetcher


def list_threads():
    return [thread for thread in threading.enumerate() if thread.name == "bvdm_data ahead"]


def wait_until(is_true):
    for _ in range(500):
        if is_true():
            return
        time.sleep(0.01)
    raise AssertionError("it never became true")


@pytest.mark.parametrize("maxsize", [1, 50])
def test_prefetcher_keeps_the_order(maxsize):
    results = Prefetcher(iter(range(20)), lambda number: number**2, maxsize)
    assert iter(results) is results
    assert list(results) == [number**2 for number in range(20)]
    assert list(results) == list(Prefetcher(iter(()), str, 1)) == []
    assert threading.get_ident() not in set(
        Prefetcher(iter(range(5)), lambda _: threading.get_ident(), 2)
    )


def test_prefetcher_stops_when_full():
    made = []
    ahead = Prefetcher(iter(range(100)), made.append, 2)
    wait_until(lambda: len(made) == 3)
    time.sleep(0.3)
    assert len(made) == 3
    next(ahead)
    wait_until(lambda: len(made) == 4)
    ahead.close()


@pytest.mark.parametrize("where", ["source", "work"])
def test_prefetcher_error_comes_in_order(where):
    def iterate():
        yield from (1, 2)
        if where == "source":
            raise KeyError("lost")
        yield 0

    def work(number):
        if number == 0:
            raise KeyError("lost")
        return number

    ahead = Prefetcher(iterate(), work, 1)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(KeyError, match="lost"):
        next(ahead)
    assert list(ahead) == []
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(Prefetcher(iter([1]), lambda _: next(iter(())), 1))


def test_closed_prefetcher_raises():
    closed = []

    def iterate():
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    ahead = Prefetcher(iterate(), str, 2)
    assert next(ahead) == "0"
    ahead.close()
    ahead.close()
    assert list_threads() == []
    assert closed == ["bvdm_data ahead"]
    with pytest.raises(RuntimeError, match="the loop was closed ahead of its end"):
        next(ahead)


def test_prefetcher_can_be_closed_while_waiting():
    go = threading.Event()
    ahead = Prefetcher(iter([1]), lambda _: go.wait(), 1)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    with pytest.raises(RuntimeError, match="the loop was closed"):
        next(ahead)
    go.set()
    closing.join()


def test_lost_prefetcher_ends_its_thread():
    circle = [Prefetcher(iter(range(100)), int, 1)]
    circle.append(circle)
    del circle
    gc.collect()
    assert list_threads() == []
    # Lost in its own thread, it does not wait for itself.
    held, gone = [], threading.Event()

    def work(_):
        gone.wait()
        held.clear()

    held.append(Prefetcher(iter(range(3)), work, 1))
    (thread,) = list_threads()
    gone.set()
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.mark.heavy
def test_interpreter_exits_while_prefetching():
    script = """
import threading
from bvdm_data.datasets.prefetch import Prefetcher
begun = threading.Event()
def work(number):
    begun.set()
    if number:
        threading.Event().wait(0.5)
    return number
ahead = Prefetcher(iter(range(100)), work, 1)
begun.wait()
print(next(ahead), flush=True)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
