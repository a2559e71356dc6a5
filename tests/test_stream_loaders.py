import contextlib

import pytest
import torch
from streams import Numbers, batches, logged
from torchdata.stateful_dataloader import StatefulDataLoader

from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.mixed import MixedVideos

# torchdata calls what this PyTorch has given up.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
several_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def taken(loader, count):
    steps = iter(loader)
    return [next(steps)["index"].tolist() for _ in range(count)]


@several_workers
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("steps", [0, 1, 5, 8])
def test_stateful_data_loader_resumes_and_makes_no_clip_again(workers, steps, batch_size, tmp_path):
    def loader(log=None):
        videos = Numbers(length=23, batch_size=batch_size, log=log)
        videos.set_epoch(4)
        return StatefulDataLoader(videos, batch_size=3, num_workers=workers)

    whole, begun, log = batches(loader()), loader(), tmp_path / "made.txt"
    seen = taken(begun, steps)
    resumed = loader(log)
    resumed.load_state_dict(begun.state_dict())
    assert seen + batches(resumed) == whole
    assert logged(log) == sorted(number for batch in whole[steps:] for number in batch)
    assert batches(resumed) == whole


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_data_loader_begins_anew_after_the_end_of_an_epoch(workers, kept):
    videos = Numbers(length=7, batch_size=2)
    how = {"num_workers": workers, "persistent_workers": kept and workers > 0}
    loader = StatefulDataLoader(videos, batch_size=2, **how)
    whole = batches(loader)
    state = loader.state_dict()
    again = StatefulDataLoader(Numbers(length=7, batch_size=2), batch_size=2, **how)
    again.load_state_dict(state)
    assert batches(again) == whole
    assert batches(again) == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_data_loader_resumes_the_epoch_of_the_state_and_then_goes_on(workers):
    videos = Numbers(length=8, batch_size=2)
    videos.set_epoch(5)
    loader = StatefulDataLoader(videos, batch_size=2, num_workers=workers)
    taken(loader, 2)
    state = loader.state_dict()
    videos = Numbers(length=8, batch_size=2)
    loader = StatefulDataLoader(
        videos, batch_size=2, num_workers=workers, persistent_workers=workers > 0
    )
    loader.load_state_dict(state)
    assert [batch["epoch"].tolist() for batch in loader] == [[5, 5], [5, 5]]
    videos.set_epoch(6)
    assert [batch["epoch"].tolist() for batch in loader] == [[6, 6]] * 4


@several_workers
def test_stateful_data_loader_with_other_workers_goes_on_from_the_count_of_the_loop():
    videos = Numbers(length=20, batch_size=2)
    seen = taken(StatefulDataLoader(videos, batch_size=2, num_workers=2), 3)
    state = videos.state_dict(consumed=6)
    videos = Numbers(length=20, batch_size=2)
    videos.load_state_dict(state)
    loader = StatefulDataLoader(videos, batch_size=2, num_workers=3)
    assert seen + batches(loader) == [[n, n + 1] for n in range(0, 20, 2)]


def test_a_worker_refuses_the_state_of_another_share():
    def loader(rank):
        videos = Numbers(length=20, batch_size=2, shard=(rank, 2))
        return StatefulDataLoader(videos, batch_size=2, num_workers=1)

    first, second = loader(0), loader(1)
    taken(first, 2)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="it has rank=0, this process has rank=1"):
        next(iter(second))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mix_with_a_real_video_resumes_with_stateful_data_loader(workers, tiny_ctc):
    def loader():
        real = CTCVideos(tiny_ctc, frames=2, size=32, border=0)
        other = CTCVideos(tiny_ctc, frames=2, size=32, border=0, seed=1)
        mix = MixedVideos({"a": real, "b": other}, length=9, batch_size=2)
        return StatefulDataLoader(mix, batch_size=2, num_workers=workers)

    whole, begun, resumed = list(loader()), loader(), loader()
    taken(begun, 2)
    resumed.load_state_dict(begun.state_dict())
    rest = list(resumed)
    assert len(rest) == 3
    for one, other in zip(rest, whole[2:], strict=True):
        assert torch.equal(one["video"], other["video"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_real_video_resumes_where_it_was(workers, tiny_ctc):
    def loader():
        videos = CTCVideos(tiny_ctc, frames=2, size=32, border=0, length=9)
        draws = torch.Generator().manual_seed(3)
        return StatefulDataLoader(
            videos, batch_size=2, shuffle=True, num_workers=workers, generator=draws
        )

    whole, begun, resumed = batches(loader()), loader(), loader()
    seen = taken(begun, 2)
    resumed.load_state_dict(begun.state_dict())
    assert seen + batches(resumed) == whole
    assert whole != sorted(whole)


class Cut(Exception):
    """Ends a training in the middle."""


def train(folder, videos, workers, stop=None, resume=None, **how):
    """Train with Lightning, until it is cut off; return epoch and numbers of each batch."""
    # Takes long to import.
    import lightning.pytorch as lightning

    seen = []

    class Noting(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def on_train_epoch_start(self):
            videos.set_epoch(self.current_epoch)

        def training_step(self, batch):
            if len(seen) == stop:
                raise Cut
            seen.append((batch["epoch"].tolist(), batch["index"].tolist()))
            return self.layer(torch.ones(1, 1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    keeper = lightning.callbacks.ModelCheckpoint(
        folder, every_n_train_steps=1, save_top_k=-1, filename="{step}"
    )
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, callbacks=[keeper], enable_progress_bar=False,
        enable_model_summary=False, **how,
    )  # fmt: skip
    loader = StatefulDataLoader(videos, batch_size=2, num_workers=workers)
    with contextlib.suppress(Cut):
        trainer.fit(Noting(), loader, ckpt_path=resume, weights_only=False)
    return seen


@pytest.mark.filterwarnings("ignore:::lightning", "ignore:::pytorch_lightning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 9])
def test_lightning_resumes_in_the_middle_of_an_epoch(workers, stop, tmp_path):
    log = tmp_path / "made.txt"
    seen = train(tmp_path, Numbers(length=14, batch_size=2), workers, stop, max_epochs=2)
    assert len(seen) == stop
    resume = tmp_path / f"step={stop}.ckpt"
    videos = Numbers(length=14, batch_size=2, log=log)
    seen += train(tmp_path, videos, workers, resume=resume, max_epochs=2)
    assert seen == [([epoch] * 2, [n, n + 1]) for epoch in (0, 1) for n in range(0, 14, 2)]
    assert len(logged(log)) == 28 - 2 * stop


@pytest.mark.filterwarnings("ignore:::lightning", "ignore:::pytorch_lightning")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_a_stream_that_ends_far_away(workers, tmp_path):
    # Without a length Lightning takes one batch ahead, and counts it as seen.
    def videos():
        return Numbers(length=10**12, batch_size=2)

    seen = train(tmp_path, videos(), workers, 3, max_steps=7)
    seen += train(tmp_path, videos(), workers, resume=tmp_path / "step=3.ckpt", max_steps=7)
    assert [numbers for _, numbers in seen] == [[n, n + 1] for n in range(0, 14, 2)]
