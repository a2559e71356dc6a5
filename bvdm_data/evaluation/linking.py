"""Compare linkers: LapTrack as tuned, and Trackastra by what it learned from."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bvdm_data.datasets.detections import DetectionErrors
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.evaluation import arms, linker
from bvdm_data.evaluation.arms import Data
from bvdm_data.evaluation.clip_cache import FirstClips, cache_json, hash_clips
from bvdm_data.evaluation.experiment import compute_mean_and_spread
from bvdm_data.evaluation.linker import Decoding, LinkerSettings
from bvdm_data.evaluation.seg_tra import LINK_MEASURES, Reference, score_links
from bvdm_data.fitting.tracker import Labels, Tracked, track
from bvdm_data.fitting.training import compute_fingerprint

SIZE = 512  # height and width of the clips that linkers learn from, at most, pixels
NUCLEI = (8, 60)  # in the first frame of a synthetic one, from sparse to crowded
CLIPS = 160  # clips of every kind
TUNED_ON = 6  # synthetic clips that LapTrack is tuned on
REACHES, SPLITS = (20.0, 25.0, 30.0, 35.0, 40.0, 50.0), (25.0, 30.0, 35.0, 40.0, 50.0)
PLANTED: dict[str, Any] = {"missed": 0.05, "merged": 0.02, "false": 0.02}
# What is taken back, one at a time, of a linker that learned from synthetic clips.
ABLATION: dict[str, dict[str, Any]] = {
    "layers as in Trackastra 0.5": {"pre_norm": False},
    "frequencies as in Trackastra 0.5": {"feature_frequencies": False},
    "divisions weighted as in Trackastra": {"division_weight": 20.0},
    "window of 6, links of 2 frames": {"window": 6, "gap": 2},
    "detections without errors": {"errors": None},
}
DECODINGS = {name: Decoding(method=name) for name in ("greedy", "ilp")}

Link = Callable[[Reference, Labels], Tracked]


def _make_clips(name: str, data: Data, count: int) -> Any:
    """Make the clips that linkers learn from: ``"real"``, ``"synthetic"``, both, or a method's.

    ``"synthetic 256 px"`` has windows and density of the arms that segmenters learn from.
    """
    if name == "synthetic 256 px":
        return arms.make_synthetic_clips(data, count)
    side = max(data.size[0], min(SIZE, arms.find_side(data)))
    data = replace(data, size=(side, side))
    if name == "real":
        return FirstClips(arms.make_real_clips(data), count)
    if name in arms.OTHER_METHODS:
        method = arms.find_method(name, data)
        data = replace(data, method=method, variation=None, outline=None)
    most = max(2, round(NUCLEI[1] * (side / SIZE) ** 2))
    nuclei = min(NUCLEI[0], most), most
    if name != "real+synthetic":
        return arms.make_synthetic_clips(data, count, nuclei=nuclei)
    stream = arms.make_synthetic_dataset(data, nuclei=nuclei, annotations=arms.ANNOTATIONS)
    real = arms.make_real_clips(replace(data, scale=stream.scale))  # the model's scale for both
    return FirstClips(MixedVideos({"real": real, "synthetic": stream}, weights=arms.MIX), count)


def _tune_laptrack(films: Sequence[tuple[Labels, Labels]]) -> dict[str, Any]:
    """Choose both distances of LapTrack by LNK + BC(1) on films of masks and their tracks."""

    def measure(reaches: tuple[float, float]) -> float:
        found = [score_links(*track(m, *reaches), m, t) for m, t in films]
        return float(np.nansum([[one["lnk"], one["bc"]] for one in found]))

    return {"reaches": max(itertools.product(REACHES, SPLITS), key=measure)}


def plant_errors(reference: Reference) -> Labels:
    """Return detections of the reference with planted errors."""
    clip = {
        "masks": torch.from_numpy(reference.masks),
        "tracks": torch.from_numpy(reference.tracks),
    }
    found: Labels = DetectionErrors(**PLANTED)(clip)["detections"].numpy()
    return found


def compare_linkers(
    data: Data,
    names: Sequence[str],
    settings: LinkerSettings,
    seeds: int,
    films: Mapping[str, Callable[[], Reference]],
    detections: Mapping[str, Labels],
    *,
    ablation: bool = False,
    count: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each linker and kind of detections: mean and spread of every measure.

    ``films`` are read, as ``"train"`` and ``"test"``, where they are needed. Networks and figures
    are kept.
    """
    test, count = films["test"](), count or CLIPS
    given = compute_fingerprint(*map(torch.from_numpy, (test.video, test.masks, test.tracks)))

    def score(name: str, keys: Sequence[object], links: Sequence[Link]) -> Iterator[dict[str, Any]]:
        for kind, masks in detections.items():
            found = []
            for key, link in zip(keys, links, strict=True):
                labels = compute_fingerprint(torch.from_numpy(masks))
                mark = compute_fingerprint("links", given, labels, key, *LINK_MEASURES)
                measure = functools.partial(_measure, link, test, masks)
                found.append(cache_json(data.folder / "links" / f"{mark}.json", measure))
            yield {"arm": name, "detections": kind, "seeds": len(found)} | _summarize(found)

    film, clips = films["train"](), _make_clips("synthetic", data, count)
    shown = [clips[i] for i in range(min(TUNED_ON, count))]
    pairs = [(c["masks"].numpy(), c["tracks"][c["tracks"][:, 0] > 0].numpy()) for c in shown]
    for which, known in ((data.train, [(film.masks, film.tracks)]), ("synthetic", pairs)):
        seen = compute_fingerprint(*(torch.from_numpy(x) for pair in known for x in pair))
        key = compute_fingerprint("laptrack", seen, REACHES, SPLITS)
        tune = functools.partial(_tune_laptrack, known)
        tuned = cache_json(data.folder / "links" / f"{key}.json", tune)
        link = functools.partial(_link_by_distance, tuned["reaches"])
        yield from score(f"LapTrack tuned on {which}", [("laptrack", *tuned["reaches"])], [link])
    jobs = [(f"Trackastra on {name}", name, settings, Decoding()) for name in names]
    if ablation and "synthetic" in names:
        jobs += [
            (f"- {n}", "synthetic", replace(settings, **c), Decoding()) for n, c in ABLATION.items()
        ]
        jobs += [("- clips of 256 px", "synthetic 256 px", settings, Decoding())]
        jobs += [(f"- decoded by {n}", "synthetic", settings, d) for n, d in DECODINGS.items()]
    for name, arm, chosen, decoding in jobs:
        made = [_train(arm, data, chosen, seed, count) for seed in range(seeds)]
        keys = [(key, decoding) for key, _ in made]
        yield from score(name, keys, [_link_with(get, decoding) for _, get in made])


def _train(
    arm: str, data: Data, settings: LinkerSettings, seed: int, count: int
) -> tuple[str, Callable[[], linker.Linker]]:
    """Return what decides a linker, and a function that trains it at its first call."""
    training = replace(settings.training, seed=seed)
    settings = replace(settings, border=data.border, training=training)
    clips = _make_clips(arm, data, count)
    frames = len(clips[0]["video"])
    if frames < settings.window:
        raise ValueError(
            f"the arm {arm!r} has clips of {frames} frames, and a linker looks at "
            f"{settings.window}; stills cannot teach links: leave out the part linking, or give "
            "longer videos"
        )
    key = compute_fingerprint("linker", hash_clips(clips[0]), hash_clips(clips[1]), settings, count)
    checkpoint = data.folder / "linkers" / f"{key}.pt"
    train = functools.partial(linker.train_linker, clips, settings, progress=data.progress)
    return key, functools.cache(lambda: train(checkpoint=checkpoint))


def _link_by_distance(reaches: Sequence[float], _: Reference, masks: Labels) -> Tracked:
    return track(masks, *reaches)


def _link_with(get: Callable[[], linker.Linker], decoding: Decoding) -> Link:
    return lambda test, masks: linker.link(get(), test.video, masks, decoding)


def _measure(link: Link, test: Reference, masks: Labels) -> dict[str, float]:
    return score_links(*link(test, masks), test.masks, test.tracks)


def _summarize(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    row = {}
    for figure in LINK_MEASURES:
        values = [math.nan if one[figure] is None else one[figure] for one in found]
        row[figure], row[f"{figure}_spread"] = compute_mean_and_spread(values)
    return row
