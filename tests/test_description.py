import re

import pytest
import torch
from test_readme import write_stand_in
from torchvision.transforms import v2

from bvdm_data import (
    CTCVideos,
    DeviceLoader,
    FastSettings,
    MixedVideos,
    PaperSettings,
    SyntheticHeLaVideos,
    twin,
)

SMALL = {"frames": 2, "size": 64}
PLAIN = (
    "SyntheticHeLaVideos(frames=2, size=(64, 64), seed=0, model='hela', method='fast', "
    "variation=1, outline='video')"
)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    root = tmp_path_factory.mktemp("real") / "Fluo-N2DL-HeLa"
    write_stand_in(root)
    return CTCVideos(root, **SMALL, stop=4)


def test_repr_says_what_differs(tiny_model):
    assert repr(SyntheticHeLaVideos(**SMALL)) == PLAIN
    other = SyntheticHeLaVideos(
        **SMALL, model=tiny_model, length=5, method=FastSettings(steps=4), nuclei=(2, 5),
        variation=0, outline="even", transform=v2.RandomHorizontalFlip(), max_cells=99,
        annotations=["masks"], batch_size=4,
    )  # fmt: skip
    assert repr(other) == (
        f"SyntheticHeLaVideos(frames=2, size=(64, 64), length=5, seed=0, model='{tiny_model}', "
        "method=FastSettings(steps=4), nuclei=(2, 5), variation=0, outline='even', "
        "annotations=('masks',), transform=RandomHorizontalFlip(p=0.5), batch_size=4)"
    )


def test_repr_can_be_run_again():
    videos = SyntheticHeLaVideos(**SMALL, seed=3, method=PaperSettings(first_steps=10), nuclei=2)
    again = eval(repr(videos))
    assert again._list_settings() == videos._list_settings()
    assert repr(again) == repr(videos)


def test_repr_of_mixes_names_sources(real):
    one = f"CTCVideos(root='{real.source.folder}', sequence='01', frames=2, size=(64, 64), length="
    assert repr(real) == f"{one}{len(real)}, stop=4)"
    quotas = {"real": 1, "synthetic": 3}
    assert repr(twin(real, quotas=quotas)) == (
        f"MixedVideos(sources={{'real': {real!r}, 'synthetic': {PLAIN}}}, quotas={quotas}, "
        "batch_size=4)"
    )
    clips = [real.clip(0)] * 20
    assert "'b': <list of 20>}, weights={'b': 1})" in repr(MixedVideos({"b": clips}))
    loader = DeviceLoader(SyntheticHeLaVideos(**SMALL), batch_size=4, device="cpu")
    assert repr(loader) == f"DeviceLoader(videos={PLAIN}, batch_size=4, device='cpu')"


def test_repr_never_raises(real):
    class Broken:
        def __call__(self, clip):
            raise RuntimeError

        __repr__ = __call__

    assert repr(SyntheticHeLaVideos.__new__(SyntheticHeLaVideos)).endswith("not ready>")
    assert "Broken" in repr(SyntheticHeLaVideos(**SMALL, transform=Broken()))
    long = SyntheticHeLaVideos(**SMALL, transform=v2.Compose([v2.RandomVerticalFlip()] * 300))
    assert len(repr(long)) < 300


def test_notebook_shows_first_clip(real, monkeypatch):
    for videos in (SyntheticHeLaVideos(**SMALL), real, twin(real)):
        page = videos._repr_html_()
        assert page.startswith(f"<code>{type(videos).__name__}(")
        assert re.search(r'src="data:image/webp;base64,[\w+/=]{400,}">$', page)
    # What would take long, or start a GPU, is not made without being asked for.
    for slow in ({"method": "paper"}, {"pool": True}, {"size": 2048}, {"frames": 40, "size": 512}):
        monkeypatch.setattr(SyntheticHeLaVideos, "clip", None)
        page = SyntheticHeLaVideos(**{**SMALL, **slow})._repr_html_()
        assert page.endswith("<code>bvdm_data.show(videos.clip(0))</code> shows the first clip.")


def test_notebook_says_why_no_picture():
    def fail(clip):
        raise ValueError("a <b> of the user")

    page = SyntheticHeLaVideos(**SMALL, transform=fail)._repr_html_()
    assert "No picture: transform failed on clip 0" in page
    assert "a &lt;b&gt; of the user" in page
    loose = SyntheticHeLaVideos(**SMALL, transform=lambda clip: torch.zeros(2))._repr_html_()
    assert "No picture: " in loose
    plain = SyntheticHeLaVideos(**SMALL, video=False)._repr_html_()
    assert "give the data set video=True" in plain
