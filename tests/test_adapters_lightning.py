import contextlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset

from bvdm_data import CTCVideos, MixedVideos, SyntheticHeLaVideos
from bvdm_data.adapters.lightning import ClipDataModule
from tests.helpers.clips import run_snippet
from tests.helpers.streams import Numbers, logged

ROOT = Path(__file__).parents[1]
CPU = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}

# Lightning warns of few workers, and calls what this PyTorch has given up.
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore:::pytorch_lightning")


class Cut(Exception):
    """Ends a training in the middle."""


def train(folder, module, stop=None, resume=None, estimate=False, tell=None, more=(), **how):
    # Returns the trainer's epoch, the epoch and the clip numbers of each batch.
    import lightning.pytorch as lightning

    seen, checked = [], []

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch):
            if len(seen) == stop:
                raise Cut
            told = batch["epoch"].unique() if "epoch" in batch else torch.tensor([0])
            seen.append((self.current_epoch, told.tolist(), batch["index"].tolist()))
            if tell is not None:
                tell(self.global_rank, seen)
            return self.layer(torch.ones(1, 1)).sum()

        def validation_step(self, batch):
            checked.append(batch["index"].tolist())

        test_step = validation_step

        def configure_optimizers(self):
            if estimate:
                assert self.trainer.estimated_stepping_batches > 0
            return torch.optim.SGD(self.parameters(), lr=0.1)

    steps = lightning.callbacks.ModelCheckpoint(
        folder, every_n_train_steps=1, save_top_k=-1, filename="{step}"
    )
    epochs = lightning.callbacks.ModelCheckpoint(
        folder, every_n_epochs=1, save_top_k=-1, filename="end-{epoch}",
        save_on_train_epoch_end=True,
    )  # fmt: skip
    trainer = lightning.Trainer(
        **CPU, callbacks=[steps, epochs, *more], enable_model_summary=False, **how
    )
    with contextlib.suppress(Cut):
        trainer.fit(Net(), module, ckpt_path=resume)
    train.checked = checked
    if "strategy" not in how:
        trainer.save_checkpoint(folder / "after.ckpt")
    train.test = lambda: trainer.test(Net(), module, verbose=False)
    return seen


def numbers(length=10, batch_size=2, workers=0, log=None, **how):
    return ClipDataModule(
        Numbers(length=length, log=log), batch_size=batch_size, num_workers=workers, **how
    )


def test_lightning_names_its_missing_extra(monkeypatch):
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    names = runpy.run_path(str(ROOT / "bvdm_data" / "adapters" / "lightning.py"))
    with pytest.raises(ImportError, match=r"pip install 'bvdm-data\[lightning\]'"):
        names["ClipDataModule"](Numbers(length=2))


@pytest.mark.parametrize(
    ("stop", "workers", "estimate"),
    [
        (4, 0, False),
        *(pytest.param(*case, marks=pytest.mark.heavy) for case in [
            (1, 2, True), (1, 0, True), (5, 2, False), (5, 0, True), (7, 2, True), (4, 2, False),
        ]),
    ],
)  # fmt: skip
def test_lightning_resumes_after_any_batch(stop, workers, estimate, tmp_path):
    log = tmp_path / "made.txt"
    how = {"max_epochs": 2, "estimate": estimate}
    seen = train(tmp_path, numbers(workers=workers), stop, **how)
    assert len(seen) == stop
    resumed = numbers(workers=workers, log=log, persistent_workers=workers > 0)
    seen += train(tmp_path, resumed, resume=tmp_path / f"step={stop}.ckpt", **how)
    assert seen == [(e, [e], [n, n + 1]) for e in (0, 1) for n in range(0, 10, 2)]
    assert len(logged(log)) == 2 * (10 - stop)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("length", "batches", "how"),
    [
        (None, 7, {"max_steps": 7}),
        (None, 3, {"max_epochs": 3, "limit_train_batches": 3}),
        (10, 3, {"max_epochs": 3, "limit_train_batches": 3}),
        (9, 5, {"max_epochs": 2}),
    ],
    ids=["endless", "endless, limited", "limited", "last batch smaller"],
)
def test_lightning_resumes_however_epochs_end(length, batches, how, tmp_path):
    whole = train(tmp_path, numbers(length), **how)
    last = 2 * batches if length is None else min(length, 2 * batches)
    clips = [list(range(n, min(n + 2, last))) for n in range(0, last, 2)]
    assert whole == [(e, [e], some) for e in range(len(whole) // batches) for some in clips]
    for stop in range(1, len(whole)):
        rest = train(tmp_path, numbers(length), resume=tmp_path / f"step={stop}.ckpt", **how)
        assert rest == whole[stop:]


@pytest.mark.parametrize(
    ("length", "stops", "how"),
    [
        (10, (3, 7), {}),
        *(pytest.param(*case, marks=pytest.mark.heavy) for case in [
            (10, (5, 10), {}), (9, (1, 5, 6), {}), (None, (3, 4), {}),
            (10, (2, 3, 7), {"limit_train_batches": 3}),
        ]),
    ],
)  # fmt: skip
def test_lightning_resumes_behind_max_steps(length, stops, how, tmp_path):
    whole = train(tmp_path, numbers(length), max_steps=12, **how)
    for name in ("after", "end-epoch", "step"):
        seen, path = [], None
        for stop in (*stops, 12):
            folder = tmp_path / f"{name} {stop}"
            seen += train(folder, numbers(length), resume=path, max_steps=stop, **how)
            path = max(folder.glob(f"{name}*"), key=lambda one: one.stat().st_mtime_ns)
        assert [clips for _, *clips in seen] == [clips for _, *clips in whole]


@pytest.mark.heavy
def test_lightning_resumes_at_epoch_end(tmp_path):
    whole = train(tmp_path, numbers(), max_epochs=3)
    for epoch in (0, 1, 2):
        path = tmp_path / f"end-epoch={epoch}.ckpt"
        rest = train(tmp_path / "on", numbers(), resume=path, max_epochs=3)
        assert rest == whole[5 * epoch + 5 :]
    seen = train(tmp_path / "twice", numbers(), 2, max_epochs=3)
    for stop in (1, 4):
        path = tmp_path / "twice" / f"step={len(seen)}.ckpt"
        seen += train(tmp_path / "twice", numbers(), stop, resume=path, max_epochs=3)
    assert seen == whole[:7]


@pytest.mark.heavy
@pytest.mark.parametrize("estimate", [False, True])
def test_lightning_resumes_from_other_checkpoints(estimate, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

    def module():
        return numbers(8, val=Numbers(length=2))

    how = {"max_epochs": 2, "val_check_interval": 2, "estimate": estimate}
    after = {"filename": "checked-{step}", "save_top_k": -1, "save_on_train_epoch_end": False}
    # Lightning tells two that save at the end of an epoch apart by their mode.
    checked = ModelCheckpoint(tmp_path, mode="max", **after)
    whole = train(tmp_path, module(), more=[checked], **how)
    assert len(whole) == 8
    for step in (2, 4, 6, 8):
        path = tmp_path / f"checked-step={step}.ckpt"
        assert train(tmp_path / "on", module(), resume=path, **how) == whole[step:]
    for stop in (1, 5):
        cut = OnExceptionCheckpoint(tmp_path, filename=f"cut-{stop}")
        assert train(tmp_path / "on", module(), stop, more=[cut], **how) == whole[:stop]
        path = tmp_path / f"cut-{stop}.ckpt"
        assert train(tmp_path / "on", module(), resume=path, **how) == whole[stop:]


@pytest.mark.heavy
def test_lightning_validation_repeats_its_clips(tmp_path):
    def module():
        others = {"val": Numbers(length=3), "test": lambda: Numbers(length=4, batch_size=3)}
        return numbers(4, 2, workers=0, **others)

    how = {"max_epochs": 2, "val_check_interval": 1, "num_sanity_val_steps": 0}
    whole = train(tmp_path, module(), **how)
    assert whole == [(e, [e], [n, n + 1]) for e in (0, 1) for n in (0, 2)]
    assert train.checked == [[0, 1], [2]] * 4
    train.test()
    assert train.checked[8:] == [[0, 1, 2], [3]]
    for stop in (1, 2, 3):
        rest = train(tmp_path, module(), resume=tmp_path / f"step={stop}.ckpt", **how)
        assert rest == whole[stop:]


@pytest.mark.heavy
def test_lightning_shuffles_real_clips_and_resumes(tiny_ctc, tmp_path):
    def module(**how):
        videos = CTCVideos(tiny_ctc, frames=2, size=32, border=0, length=7)
        return ClipDataModule(videos, batch_size=2, **how)

    whole = train(tmp_path, module(), max_epochs=2)
    first, second = ([n for _, _, some in part for n in some] for part in (whole[:4], whole[4:]))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    for stop in (2, 6):
        path = tmp_path / f"step={stop}.ckpt"
        assert train(tmp_path / "on", module(), resume=path, max_epochs=2) == whole[stop:]
    assert train(tmp_path / "other", module(seed=1), max_epochs=2) != whole
    plain = train(tmp_path / "plain", module(shuffle=False), max_epochs=1)
    assert [n for _, _, some in plain for n in some] == list(range(7))


def test_lightning_sets_epoch_of_real_clips(tiny_ctc):
    videos = CTCVideos(tiny_ctc, frames=2, size=32, border=0, length=3)
    module = ClipDataModule(videos, batch_size=3, shuffle=False)
    module.videos.set_epoch(4)
    (clips,) = module.train_dataloader().dataset.clips([1])
    assert videos.epoch == 4
    videos.set_epoch(4)
    assert torch.equal(clips["video"], videos.clip(1)["video"])
    videos.set_epoch(0)
    assert not torch.equal(clips["video"], videos.clip(1)["video"])


def test_lightning_keeps_quotas_of_mix(tiny_model, tmp_path):
    one, two = (
        SyntheticHeLaVideos(frames=2, size=40, nuclei=1, model=tiny_model) for _ in range(2)
    )
    mix = MixedVideos({"a": one, "b": two}, quotas={"a": 1, "b": 1}, length=8)
    with pytest.raises(ValueError, match=r"batch_size must be that of train.*=2, got 4"):
        ClipDataModule(mix, batch_size=4)
    module = ClipDataModule(mix)
    assert module.batch_size == 2
    assert len(train(tmp_path, module, max_epochs=1)) == 4


def test_lightning_calls_a_factory_once(tmp_path):
    made = []
    module = ClipDataModule(lambda: made.append(1) or Numbers(length=4), batch_size=2)
    assert made == []
    assert module.videos is None
    assert len(train(tmp_path, module, max_epochs=2)) == 4
    assert made == [1]


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="forks the ranks")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_ranks_split_clips_and_resume(workers, tmp_path):
    def tell(rank, seen):
        (tmp_path / f"{rank}.json").write_text(json.dumps(seen))

    def told():
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]

    how = {"max_epochs": 2, "strategy": "ddp_fork", "devices": 2, "tell": tell}
    train(tmp_path, numbers(12, workers=workers), **how)
    whole = told()
    for rank in (0, 1):
        starts = [rank + n for n in (0, 4, 8)]
        assert whole[rank] == [[e, [e], [n, n + 2]] for e in (0, 1) for n in starts]
    for stop in (2, 3):
        path = tmp_path / f"step={stop}.ckpt"
        train(tmp_path, numbers(12, workers=workers), resume=path, **how)
        assert told() == [seen[stop:] for seen in whole]


class Others(IterableDataset):
    def __iter__(self):
        return iter(())


def test_lightning_refuses_bad_arguments():
    stream = "must be a stream of clips"
    for given, how, error, message in (
        (Others(), {}, TypeError, f"train {stream}"),
        (3, {}, TypeError, f"train {stream}.*got 3"),
        (list, {}, ValueError, "train must hold at least one clip"),
        (Others, {}, TypeError, f"train {stream}"),
        (Numbers, {"val": 3}, TypeError, f"val {stream}.*got 3"),
        (Numbers, {"val": [Others()]}, TypeError, f"val {stream}"),
        (Numbers, {"test": lambda: None}, TypeError, f"test {stream}"),
        (Numbers, {"batch_size": 0}, ValueError, "batch_size must be 1 or more"),
        (Numbers, {"num_workers": -1}, ValueError, "num_workers must be 0 or more"),
        (Numbers, {"persistent_workers": True}, ValueError, "persistent_workers must be False"),
        (Numbers, {"sampler": [0]}, TypeError, "sampler must not be given"),
        (Numbers, {"seed": -1}, ValueError, "seed must be"),
    ):
        with pytest.raises(error, match=message):
            ClipDataModule(given, **how).setup()
    videos = Numbers(length=4)
    with pytest.raises(ValueError, match="val must be another data set than train"):
        ClipDataModule(videos, val=[Numbers(length=2), videos])


def test_lightning_refuses_state_of_other_seed(tmp_path):
    train(tmp_path, numbers(), 3, max_epochs=1)
    other = ClipDataModule(Numbers(length=10, seed=5), batch_size=2)
    with pytest.raises(ValueError, match="seed=5, got seed=0"):
        train(tmp_path, other, resume=tmp_path / "step=3.ckpt", max_epochs=1)


def test_lightning_refuses_state_of_other_clips(tiny_ctc):
    def module(**how):
        videos = CTCVideos(tiny_ctc, border=0, **{"frames": 2, "size": 32} | how)
        return ClipDataModule(videos, shuffle=False).videos

    state = module().state_dict()
    module(cache_bytes=0, max_cells=50).load_state_dict(state)
    for how, words in (
        ({"size": 40}, r"size=\(40, 40\), got size=\(32, 32\)"),
        ({"seed": 1}, "seed=1, got seed=0"),
        ({"stop": 4}, "stop=4, got stop=None"),
        ({"transform": dict}, "transform=dict, got transform=NoneType"),
    ):
        with pytest.raises(ValueError, match=words):
            module(**how).load_state_dict(state)


def test_lightning_example_trains_and_resumes(tmp_path):
    main = runpy.run_path(str(ROOT / "examples" / "train_lightning.py"))["main"]
    small = ["--folder", str(tmp_path), "--frames", "2", "--size", "64", "--batch-size", "2"]
    small += ["--workers", "0", "--clips", "8"]
    first = main([*small, "--steps", "3"])
    assert first == [[0, 1], [2, 3], [4, 5]]
    assert main([*small, "--steps", "6"]) == [[6, 7], [0, 1], [2, 3]]


def test_the_snippet_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_snippet("Frameworks", "lightning")
