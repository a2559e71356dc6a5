"""Report: the figures of an evaluation as JSON, and as a page that is read without a network."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bvdm_data.evaluation import report_looks as looks
from bvdm_data.evaluation import report_training as training
from bvdm_data.evaluation.experiment import without_nan
from bvdm_data.evaluation.report_html import (
    MISSING,
    embedded_picture,
    figure,
    page,
    settings_text,
    text,
)
from bvdm_data.evaluation.report_looks import largest_gaps
from bvdm_data.files import whole_file

__all__ = ["largest_gaps", "write_report"]

TITLE = "Evaluation of synthetic live-cell clips"
"""Title of the page."""

Values = Mapping[str, Any]


def write_report(
    results: Values, folder: Path, *, pictures: Mapping[str, Path] = MappingProxyType({})
) -> Path:
    """Write all figures to ``report.json`` and a page to ``index.html``.

    The page holds its plots and pictures itself and loads nothing. A part that is missing in the
    results is left out of it. NaN is null in the JSON and "n/a" on the page.

    Args:
        results: JSON values by part, each optional:

            - ``"about"``: what was judged; ``model``, ``model_digest``, ``method``, ``data_set``,
              ``train``, ``test``, ``clip``, ``budget``, ``machine``, ``versions``, ``made`` and
              ``train_frames`` (annotated frames of the whole training video, the last place of the
              scarcity curve), each optional; anything else is listed under its own name.
            - ``"training"``: ``rows`` and ``trials``
              (:class:`bvdm_data.evaluation.experiment.Row` and ``Trial`` as dicts), ``baseline``,
              ``settings``, ``ceiling`` (:class:`bvdm_data.evaluation.seg_tra.Scores` as a dict).
            - ``"scarcity"``: by number of frames (a string): the same without ``ceiling``, and
              ``missing``, reasons by arm.
            - ``"steps"``: by ``"first/later"``: the same with one row, and beside ``rows`` or in
              that row, where known: ``kid`` (KID-Lite0 x 1000) with ``kid_error``,
              ``agreement``, ``correlation`` (after 1, 2, 4, 7 frames, or the first of these), and
              ``seconds_per_clip``.
            - ``"ablation"``: the same by the name of the variant.
            - ``"reuse"``: the same by how often nuclei are shown.
            - ``"linking"``: ``rows`` (``arm``, ``seeds``, ``lnk``, ``bc``, ``tra``, each figure
              also with ``_spread``), ``laptrack`` (the three figures), ``settings``.
            - ``"distance"``: ``crops`` and ``tiles``, lists of
              :class:`bvdm_data.evaluation.frechet.PictureDistance` as dicts, and ``note``. Sets
              whose names begin with ``real`` are drawn dark.
            - ``"realism"``: ``lines``, :class:`bvdm_data.evaluation.realism.Line` as dicts;
              ``films``, names of ``reference`` and ``other`` (else ``train`` and ``test`` of
              ``"about"``); ``curves``, further plots by title, each with ``x``, ``lines`` (values
              by name), ``x_label``, ``y_label``.
        folder: Where to write; made if need be.
        pictures: Files (PNG, JPEG or GIF) by caption.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: If a picture is missing; nothing is written.
        ModuleNotFoundError: If matplotlib is missing; nothing is written.
        OSError: If a file cannot be written; what stood there before is still there.
        ValueError: If a picture is of another kind, or a number is infinite; nothing is written.
    """
    plain = without_nan(results)
    figures = json.dumps(plain, indent=2, allow_nan=False) + "\n"
    html = page(TITLE, _sections(plain, pictures), _about(plain.get("about", {})))
    with whole_file(folder / "report.json") as temporary:
        temporary.write_text(figures, encoding="utf-8")
    target = folder / "index.html"
    with whole_file(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def _sections(results: Values, pictures: Mapping[str, Path]) -> list[tuple[str, str, str]]:
    about = results.get("about", {})
    shown = [figure(embedded_picture(p), c, kind="picture") for c, p in pictures.items()]
    found = []
    if "training" in results:
        found.append(("training", "Training value", training.training(results["training"])))
    if "scarcity" in results:
        curve = training.scarcity(
            results["scarcity"],
            whole=results.get("training"),
            whole_frames=about.get("train_frames"),
        )
        found.append(("scarcity", "Scarcity curve", curve))
    if "steps" in results:
        found.append(("steps", "Diffusion steps", training.steps(results["steps"])))
    if "ablation" in results:
        found.append(("ablation", "Ablation", training.ablation(results["ablation"])))
    if "reuse" in results:
        found.append(("reuse", "Reuse", training.reuse(results["reuse"])))
    if "linking" in results:
        found.append(("linking", "Tracking value", training.linking(results["linking"])))
    if pictures:
        found.append(("pictures", "Pictures", "".join(shown)))
    if "distance" in results:
        found.append(("distance", "Picture distance", looks.distance(results["distance"])))
    if "realism" in results:
        part = results["realism"]
        names = looks.film_names(part, about)
        found.append(("realism", "Realism", looks.realism(part, names)))
        found.append(("gaps", "The largest gaps", looks.gaps(part, names)))
    return found


def _about(about: Values) -> str:
    known = {name: read(about) for name, read in _ABOUT.items()}
    shown = {name: value for name, value in known.items() if value}
    for key, value in about.items():
        if key not in _READ:
            said = settings_text(value) if isinstance(value, Mapping) else _plain(value)
            name = key.replace("_", " ")
            shown[text(name[:1].upper() + name[1:])] = said
    terms = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in shown.items())
    return f"<dl>{terms}</dl>" if terms else ""


def _plain(value: Any) -> str:
    if value is None:
        return MISSING
    return text(", ".join(map(str, value)) if isinstance(value, list) else value)


def _model(about: Values) -> str:
    digest = about.get("model_digest")
    return text(about.get("model", "")) + (f" <small>{text(digest)}</small>" if digest else "")


def _data(about: Values) -> str:
    said = [text(about.get("data_set", ""))]
    frames = f" ({about['train_frames']} frames)" if about.get("train_frames") else ""
    said += [f"fitted to and trained on {text(about['train'])}{frames}"] if "train" in about else []
    said += [f"tested on {text(about['test'])}"] if "test" in about else []
    return ", ".join(part for part in said if part)


def _nested(key: str, about: Values) -> str:
    return settings_text(about.get(key) or {})


_READ = {"model", "model_digest", "method", "data_set", "train", "test", "clip", "budget"}
_READ |= {"machine", "versions", "made", "train_frames"}
_ABOUT: dict[str, Callable[[Values], str]] = {
    "Model": _model,
    "Method": lambda about: text(about.get("method", "")),
    "Data": _data,
    "Clips": lambda about: _nested("clip", about),
    "Seeds and budget": lambda about: _nested("budget", about),
    "Machine": lambda about: _nested("machine", about),
    "Versions": lambda about: _nested("versions", about),
    "Date": lambda about: text(about.get("made", "")),
}
