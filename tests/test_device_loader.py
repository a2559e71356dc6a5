"""DeviceLoader: on the CPU the bytes of DataLoader; rendering in batches is tried there, too."""

import gc
import subprocess
import sys
import threading
import time
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from bvdm_data import DeviceLoader, FastSettings, PoolSettings, SyntheticHeLaVideos, weights
from bvdm_data.clip import ANNOTATIONS, TooManyNucleiError
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets import device_loader
from bvdm_data.datasets.device_loader import Prefetcher
from bvdm_data.synth.cell_bank import CellBank
from tests.helpers.streams import batches, same

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.usefixtures("short_wait"),
]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


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
    assert list_threads() == []


def list_threads():
    return [thread for thread in threading.enumerate() if thread.name == "bvdm_data ahead"]


def on_cpu(videos, batch_size=2, **how):
    return DeviceLoader(videos, batch_size=batch_size, device="cpu", **how)


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


@pytest.mark.parametrize(
    ("workers", "pool", "batch_size"),
    [(2, None, None), (0, PoolSettings(pairs=3), None), (1, PoolSettings(pairs=3), 2)],
)
def test_cpu_batches_equal_those_of_dataloader(tiny, workers, pool, batch_size):
    videos = tiny(pool=pool, batch_size=batch_size or 1)
    wanted = list(DataLoader(videos, batch_size=batch_size))
    with on_cpu(videos, batch_size, num_workers=workers) as loader:
        assert_same(loader, wanted)
        # A second loop goes over the same clips, a pool being filled or not.
        assert_same(loader, wanted)
        assert len(loader) == len(wanted)


def test_all_settings_and_batches_load(tiny, together):
    for changes in (
        {"method": FastSettings(families=False), "nuclei": 0}, {"annotations": ()},
        {"variation": 0, "nuclei": (0, 4), "frames": 1},
    ):  # fmt: skip
        videos = tiny(**changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device_loader, "_make_renderer", lambda *_: None)
            assert_same(on_cpu(videos), DataLoader(videos, batch_size=2))
    assert batches(on_cpu(tiny(), drop_last=True)) == [[0, 1], [2, 3]]
    # Two threads that fill one pool would get in each other's way.
    videos = tiny(pool=PoolSettings(pairs=3))
    list(on_cpu(videos))
    assert videos._pool._pairs == {}


@pytest.mark.parametrize(("annotations", "batch_size"), [(ANNOTATIONS, 2), (("tracks",), None)])
def test_transform_does_the_same(tiny, annotations, batch_size):
    def darken(clip):
        return {**clip, "video": clip["video"] * torch.rand(())}

    videos = tiny(transform=darken, annotations=annotations, batch_size=batch_size or 1, length=3)
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


def test_new_epoch_reaches_kept_workers(tiny):
    videos = tiny()
    with on_cpu(videos, num_workers=2, persistent_workers=True) as loader:
        for epoch in (0, 3):
            videos.set_epoch(epoch)
            assert_same(loader, DataLoader(videos, batch_size=2))


def test_ranks_split_the_clips(tiny):
    loaders = [on_cpu(tiny(shard=(rank, 2)), num_workers=rank) for rank in (0, 1)]
    assert [batches(loader) for loader in loaders] == [[[0, 2], [4]], [[1, 3], [0]]]
    assert [len(loader) for loader in loaders] == [2, 2]
    endless = on_cpu(tiny(length=None))
    loop = iter(endless)
    assert batches(next(loop) for _ in range(3)) == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(TypeError, match="this SyntheticHeLaVideos is endless and has no len"):
        len(endless)


@pytest.mark.parametrize(("workers", "kept", "steps"), [(2, True, 3), (0, False, 3)])
def test_loop_resumes_from_its_state(tiny, workers, kept, steps):
    videos, fresh, plain = (tiny(length=7, nuclei=0) for _ in range(3))
    videos.set_epoch(2)
    whole = batches(on_cpu(videos))
    loader = on_cpu(videos, num_workers=workers, persistent_workers=kept)
    loop = iter(loader)
    seen = batches(next(loop) for _ in range(steps))
    state = loader.state_dict()
    assert state == videos.state_dict(consumed=2 * steps)
    assert state == {"epoch": 2, "seed": 0, "start": 2 * steps}
    other = on_cpu(fresh, num_workers=workers, persistent_workers=kept)
    other.load_state_dict(state)
    assert fresh.epoch == 2
    assert seen + batches(other) == whole
    # Only the next loop continues there.
    assert batches(other) == whole
    plain.load_state_dict(state)
    assert seen + batches(DataLoader(plain, batch_size=2)) == whole
    # The same loader can go back, too.
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    assert seen + batches(loader) == whole


def test_state_belongs_to_the_loader(tiny):
    videos = tiny()
    loader = on_cpu(videos)
    loop = iter(loader)
    next(loop)
    with pytest.raises(RuntimeError, match="consumed must be given"):
        videos.state_dict()
    videos.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "seed": 0, "start": 0}
    assert loader.state_dict(consumed=2)["start"] == 2
    with pytest.raises(RuntimeError, match="in the middle of a pass over epoch 0"):
        list(loop)
    loader = on_cpu(tiny(batch_size=None))
    next(iter(loader))
    with pytest.raises(ValueError, match="give the data set the batch_size of the loader"):
        loader.state_dict()


@pytest.mark.parametrize("batched", [False, True])
def test_error_names_the_clip(tiny, batched, request):
    if batched:
        request.getfixturevalue("together")
    videos = tiny(length=40, nuclei=(0, 3), max_cells=3)
    loader = on_cpu(videos, num_workers=int(batched))
    loop = iter(loader)
    with pytest.raises(TooManyNucleiError, match=r"It is clip \d+ of epoch 0 of Synthetic"):
        for _ in loop:
            pass
    assert list(loop) == []
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


def test_new_loop_closes_the_last(tiny):
    loader = on_cpu(tiny(nuclei=0))
    first = iter(loader)
    next(first)
    assert batches(loader) == [[0, 1], [2, 3], [4]]
    with pytest.raises(RuntimeError, match="a new one was begun"):
        next(first)


def test_close_ends_all_workers(tiny):
    videos = tiny(length=None, nuclei=0)
    with on_cpu(videos, num_workers=2, persistent_workers=True) as loader:
        next(iter(loader))
        assert len(torch.multiprocessing.active_children()) == 2
        loader.close()
        assert torch.multiprocessing.active_children() == []
        assert next(iter(loader))["index"].tolist() == [0, 1]


def test_abandoned_loop_ends_its_workers(tiny):
    for batch in on_cpu(tiny(length=None, nuclei=0), num_workers=1):
        assert batch["index"].tolist() == [0, 1]
        break
    gc.collect()
    assert list_threads() == torch.multiprocessing.active_children() == []
    # A loop outlives its loader.
    loop = iter(on_cpu(tiny(), num_workers=1, persistent_workers=True))
    gc.collect()
    assert batches(loop) == [[0, 1], [2, 3], [4]]


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


@pytest.fixture
def together(monkeypatch):
    """Let loaders render on the CPU as they would on another device."""

    def make(videos, method, device, _):
        bank = None if videos.pool is None else CellBank(videos.pool, videos.seed)
        shape, model = (videos.frames, *videos.size), weights.load(videos.model)
        return device_loader.BatchRenderer(model, method, shape, device, batch_size=16, bank=bank)

    monkeypatch.setattr(device_loader, "_make_renderer", make)


@pytest.mark.parametrize(("workers", "pool"), [(0, PoolSettings(pairs=3)), (2, None)])
def test_device_changes_only_the_noise(tiny, together, workers, pool, quiet_model):
    for model in ({}, {"model": quiet_model}):
        videos = tiny(pool=pool, length=4, **model)
        for one, other in zip(
            on_cpu(videos, num_workers=workers), DataLoader(videos, batch_size=2), strict=True
        ):
            for place in range(2):
                check_clip({key: value[place] for key, value in one.items()})
            apart = ((one["video"] - other["video"]) * 4095).round().abs()
            assert one["video"].dtype == other["video"].dtype
            assert same({**one, "video": one["index"]}, {**other, "video": one["index"]})
            if model:
                assert apart.max() <= 1
                assert (apart > 0).float().mean() < 0.01
            else:
                assert (apart > 0).float().mean() > 0.5


def test_device_clip_depends_on_number(tiny, together):
    def clips(batch_size, epoch, **changes):
        videos = tiny(batch_size=batch_size, **changes)
        videos.set_epoch(epoch)
        loader = on_cpu(videos, batch_size)
        return {int(n): v for batch in loader for n, v in zip(batch["index"], batch["video"])}  # noqa: B905

    one, other = clips(2, 1), clips(5, 1)
    assert one.keys() == other.keys() == set(range(5))
    assert all(torch.equal(one[number], other[number]) for number in one)
    assert not torch.equal(one[0], clips(2, 2, length=1)[0])
    assert not torch.equal(one[0], clips(2, 1, length=1, seed=1)[0])


def test_device_transform_runs_in_the_loop(tiny, together):
    def mark(clip):
        return {**clip, "thread": threading.current_thread() is threading.main_thread()}

    (batch,) = on_cpu(tiny(transform=mark, length=2))
    assert batch["thread"].tolist() == [True, True]


def test_cuda_stream_waits_in_order(tiny, together, monkeypatch):
    calls = MagicMock()
    calls.side.device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "stream", calls.enter)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: calls.loop)
    monkeypatch.setattr(torch.cuda, "set_device", calls.set_device)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: calls.use(stream))
    loader = on_cpu(tiny(length=2, annotations=("masks",)))
    loader._stream = calls.side
    for _ in range(2):
        calls.reset_mock()
        (batch,) = loader
        assert list(batch) == ["video", "masks", "index", "source"]
        unordered = ("side.synchronize", "side.__bool__")
        names = [name for name, *_ in calls.mock_calls if name not in unordered]
        assert names == [
            "side.wait_stream", "set_device", "enter", "enter().__enter__", "side.record_event",
            "enter().__exit__", "loop.wait_event", *4 * ["use"],
        ]  # fmt: skip
        calls.side.wait_stream.assert_called_once_with(calls.loop)
        calls.enter.assert_called_once_with(calls.side)
        calls.loop.wait_event.assert_called_once_with(calls.side.record_event())
        calls.use.assert_called_with(calls.loop)
        calls.side.synchronize.assert_called_once_with()


def on_cuda(videos, **how):
    return DeviceLoader(videos, batch_size=2, device="cuda", **how)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pool", [None, PoolSettings(pairs=3)], ids=["fresh", "pool"])
def test_cuda_changes_only_the_noise(tiny, workers, pool, quiet_model):
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
            if model:
                # The network sums up in another order there, in eight bits.
                torch.testing.assert_close(video, other["video"], rtol=0, atol=0.02)
            torch.testing.assert_close(video * 4095, (video * 4095).round(), rtol=0, atol=1e-3)


@pytest.mark.gpu
@needs_cuda
def test_cuda_rendering_never_waits(tiny, monkeypatch):
    videos = tiny(length=8)
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
def test_busy_cuda_loop_gets_whole_batches(tiny):
    videos = tiny(length=20)
    wanted = [batch["video"].clone() for batch in on_cuda(videos)]
    matrix, seen = torch.randn(2000, 2000, device="cuda"), []
    for batch in on_cuda(videos, num_workers=1, prefetch=1):
        for _ in range(20):
            matrix = (matrix @ matrix).tanh()
        seen.append(batch["video"].clone())
        del batch
    assert all(torch.equal(*pair) for pair in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("maxsize", [1, 50])
def test_prefetcher_keeps_the_order(maxsize):
    results = Prefetcher(iter(range(20)), lambda number: number**2, maxsize)
    assert list(results) == [number**2 for number in range(20)]
    assert list(results) == list(Prefetcher(iter(()), str, 1)) == []
    idents = Prefetcher(iter(range(5)), lambda _: threading.get_ident(), 2)
    assert threading.get_ident() not in set(idents)


def test_prefetcher_stops_when_full():
    made, again = [], threading.Semaphore(0)
    ahead = Prefetcher(iter(range(100)), lambda n: (made.append(n), again.release()), 2)
    for count in (3, 4):
        while len(made) < count:
            assert again.acquire(timeout=5)
        time.sleep(0.2)
        assert len(made) == count
        next(ahead)
    ahead.close()


@pytest.mark.parametrize("where", ["source", "work"])
def test_prefetcher_error_comes_in_order(where):
    def iterate():
        yield from (1, 2)
        yield 0 if where == "work" else {}[0]

    ahead = Prefetcher(iterate(), lambda number: {1: 1, 2: 2}[number], 1)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(KeyError, match="0"):
        next(ahead)
    assert list(ahead) == []
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(Prefetcher(iter([1]), lambda _: next(iter(())), 1))


def test_closed_prefetcher_raises():
    closed, go = [], threading.Event()

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
    # It can be closed while another thread waits for it.
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
