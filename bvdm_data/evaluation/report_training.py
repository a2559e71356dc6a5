"""Report of training: what networks are worth that were trained on each kind of clips."""

from collections.abc import Mapping, Sequence
from typing import Any

from bvdm_data.evaluation.experiment import BASELINE
from bvdm_data.evaluation.report_html import (
    MISSING,
    Row,
    details,
    figure,
    fixed,
    general,
    paragraph,
    side_by_side,
    table,
    text,
    with_error,
)
from bvdm_data.evaluation.report_plots import Series, curves, dots
from bvdm_data.evaluation.report_scores import (
    EXPLAINED,
    TITLES,
    all_networks,
    columns,
    differences,
    heads,
    means,
    settings_line,
)

PAPER_ARMS = {
    "real": (0.823, 0.976),
    "MitoGen": (0.822, 0.972),
    "CellCycleGAN": (0.781, 0.953),
    "BVDM": (0.829, 0.979),
}
"""SEG and TRA by training data (paper, table 1)."""

PAPER_STEPS = {
    "100/10": (0.822, 0.967),
    "200/10": (0.829, 0.979),
    "400/10": (0.815, 0.960),
    "600/10": (0.786, 0.947),
    "200/0": (0.820, 0.972),
    "200/30": (0.827, 0.970),
    "200/50": (0.821, 0.965),
    "200/200": (0.813, 0.941),
}
"""SEG and TRA by first and later diffusion steps (paper, tables 2a and 2b)."""

LAGS = (1, 2, 4, 7)
"""Lags of the correlation of texture, frames; a list of it may be shorter."""

STEP_FIGURES = ("seg", "det", "tra")
"""Columns of the table of diffusion steps."""

Values = Mapping[str, Any]


def training(part: Values) -> str:
    """Return the HTML of the training value.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"training"``.
    """
    rows, baseline = part["rows"], part.get("baseline", BASELINE)
    shown = columns(rows)
    cells = [Row(means(row, shown)) for row in rows]
    if "ceiling" in part:
        known = part["ceiling"]
        perfect = [fixed(known[one]) if one in known else "" for one in shown]
        cells.append(Row(["tracker on the reference masks", "", *perfect], "context"))
    plots = [
        figure(
            dots(_by_arm(part["trials"], one), TITLES[one], baseline),
            f"{TITLES[one]} of every network; bars: means; dashed: mean of {baseline}.",
        )
        for one in ("seg", "tra")
        if part.get("trials")
    ]
    return "\n".join(
        [
            paragraph(
                "The same segmentation network is trained on each arm's data and tested, with the "
                "same tracker behind it, on a real video that no arm has seen."
            ),
            paragraph(EXPLAINED),
            table("Networks by training data", ["arm", "seeds", *heads(shown)], cells),
            differences(rows, baseline),
            side_by_side(*plots),
            _paper_arms(),
            settings_line(part),
            all_networks(part.get("trials", [])),
        ]
    )


def scarcity(part: Values, *, whole: Values | None, whole_frames: int | None) -> str:
    """Return the HTML of the scarcity curve.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"scarcity"``.
        whole: The part ``"training"``, whose arms have the whole video; None: left out.
        whole_frames: How many frames that is; None: not known, and not drawn.
    """
    levels = sorted(((int(frames), level) for frames, level in part.items()), key=lambda it: it[0])
    named = [(str(frames), level) for frames, level in levels]
    arms = list(dict.fromkeys(row["arm"] for _, level in levels for row in level["rows"]))
    if whole is not None:
        kept = [row for row in whole["rows"] if row["arm"] in arms]
        named.append((f"all {whole_frames or ''}".strip(), {**whole, "rows": kept}))
        if whole_frames:
            levels = [*levels, (whole_frames, named[-1][1])]
    shown = columns([row for _, level in named for row in level["rows"]])
    rows = []
    for frames, level in named:
        title = f"{frames} annotated frame{'' if frames == '1' else 's'}"
        rows.append(Row([text(title)], "group"))
        rows += [Row(means(row, shown)) for row in level["rows"]]
        for arm, reason in level.get("missing", {}).items():
            cell = f'<td class="reason" colspan="{len(shown) + 1}">not possible: {text(reason)}'
            rows.append(Row([text(arm), f"{cell}</td>"]))
    steps = [
        differences(level["rows"], level.get("baseline", BASELINE), f"{frames} frames: ")
        for frames, level in named
    ]
    lines = {arm: _curve(arm, levels) for arm in arms}
    plot = curves(lines, "annotated frames", "SEG", log=True) if lines else ""
    caption = "SEG against the number of annotated frames; bars: standard deviation over the seeds."
    return "\n".join(
        [
            paragraph(
                "Only the first frames of the training video are used, for fitting the model and "
                "for training alike; the test stays the same."
            ),
            side_by_side(figure(plot, caption)) if plot else "",
            table("Networks by number of annotated frames", ["arm", "seeds", *heads(shown)], rows),
            details("Differences for each number of frames", "".join(steps)) if any(steps) else "",
            settings_line(levels[0][1]) if levels else "",
        ]
    )


def steps(part: Values) -> str:
    """Return the HTML of the comparison of diffusion steps.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"steps"``.
    """
    known = [pair for pair, one in part.items() if one["rows"]]
    pairs = sorted(known, key=lambda pair: [int(number) for number in pair.split("/")])
    first = [pair for pair in pairs if pair.endswith("/10")]
    later = [pair for pair in pairs if pair.startswith("200/")]
    rest = [pair for pair in pairs if pair not in (*first, *later)]
    tables = [
        _steps_table("a) Steps at the first frame, 10 at later ones", first, part),
        _steps_table("b) Steps at later frames, 200 at the first", later, part),
        _steps_table("Other steps", rest, part),
    ]
    return "\n".join(
        [
            paragraph(
                "Each row: networks trained on a few clips that were made with so many diffusion "
                "steps at the first frame of a nucleus and at the later ones. Compare rows with "
                "each other; the paper's figures beside them come from more clips, another "
                "segmenter and other test frames."
            ),
            *tables,
            settings_line(part[pairs[0]]) if pairs else "",
            all_networks([trial for pair in pairs for trial in part[pair].get("trials", [])]),
        ]
    )


def ablation(part: Values) -> str:
    """Return the HTML of the comparison of variants.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"ablation"``.
    """
    return _variants(
        "Variants",
        "Each row: networks trained on a few clips of a variant, all with the same number of clips "
        "and steps and the same seeds.",
        part,
    )


def reuse(part: Values) -> str:
    """Return the HTML of what it costs to show nuclei again.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"reuse"``.
    """
    return _variants(
        "Painted nuclei that are shown again",
        "Each row: networks trained on an endless stream, every sample from another clip. From row "
        "to row the same nuclei are shown more often.",
        part,
    )


def _variants(title: str, explained: str, part: Values) -> str:
    known = [name for name, one in part.items() if one["rows"]]
    return "\n".join(
        [
            paragraph(explained),
            _steps_table(title, known, part, paper=False),
            settings_line(part[known[0]]) if known else "",
            all_networks([trial for name in known for trial in part[name].get("trials", [])]),
        ]
    )


def linking(part: Values) -> str:
    """Return the HTML of the tracking value.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"linking"``.
    """
    figures = ("lnk", "bc", "tra")
    rows = []
    for row in part["rows"]:
        scores = [with_error(row.get(one), row.get(f"{one}_spread")) for one in figures]
        rows.append(Row([text(row["arm"]), str(row["seeds"]), *scores]))
    if "laptrack" in part:
        scores = [fixed(part["laptrack"].get(one)) for one in figures]
        rows.append(Row(["LapTrack, not trained", "", *scores], "context"))
    return "\n".join(
        [
            paragraph(
                "A linking network is trained on each arm's clips and then links the reference "
                "masks of the test video, so SEG and DET are 1 for all and only the links differ. "
                "Single frames cannot teach this. ± is the standard deviation over the seeds."
            ),
            table(
                "Linkers by training data",
                ["arm", "seeds", *heads(figures)],
                rows,
            ),
            settings_line(part),
        ]
    )


def _by_arm(trials: Sequence[Values], one: str) -> dict[str, list[float | None]]:
    arms = dict.fromkeys(trial["arm"] for trial in trials)
    return {arm: [trial[one] for trial in trials if trial["arm"] == arm] for arm in arms}


def _curve(arm: str, levels: Sequence[tuple[int, Values]]) -> Series:
    found = [(n, row) for n, level in levels for row in level["rows"] if row["arm"] == arm]
    return Series(
        x=[frames for frames, _ in found],
        y=[row["mean"].get("seg") for _, row in found],
        error=[row["spread"].get("seg") for _, row in found],
    )


def _paper_arms() -> str:
    real = PAPER_ARMS["real"]
    rows = []
    for arm, scores in PAPER_ARMS.items():
        gains = [fixed(a - b, 3, signed=True) for a, b in zip(scores, real, strict=True)]
        shown = [*(fixed(score, 3) for score in scores), *(gains if arm != "real" else ["", ""])]
        rows.append(Row([arm, *shown], "context"))
    titles = ["arm", "SEG", "TRA", "SEG \N{MINUS SIGN} real", "TRA \N{MINUS SIGN} real"]
    return table("The paper, table 1, for context", titles, rows) + paragraph(
        "Absolute values are not comparable with the ones above: the paper used another segmenter "
        "and another tracker and tested on other frames. Only differences to real are, and the "
        "paper gives no spread for them."
    )


def _steps_table(title: str, pairs: Sequence[str], part: Values, *, paper: bool = True) -> str:
    if not pairs:
        return ""
    found = {pair: {**part[pair], **part[pair]["rows"][0], "arm": pair} for pair in pairs}
    lags = max(len(row.get("correlation") or []) for row in found.values())
    extra = {
        "kid": "KID-Lite0 x 1000",
        "agreement": "label agreement",
        "correlation": f"texture after<br>{' / '.join(map(str, LAGS[:lags]))} frames",
        "seconds_per_clip": "s/clip",
    }
    extra = {key: head for key, head in extra.items() if any(key in r for r in found.values())}
    rows = []
    for pair, row in found.items():
        scores = [fixed(score, 3) for score in PAPER_STEPS.get(pair, ())] or ["", ""]
        context = [f'<td class="soft">{score}</td>' for score in scores] if paper else []
        further = [_further(key, row) for key in extra]
        rows.append(Row([*means(row, STEP_FIGURES), *further, *context]))
    titles = [*heads(STEP_FIGURES), *extra.values()]
    titles += ["paper: SEG", "paper: TRA"] if paper else []
    return table(title, ["first/later" if paper else "variant", "seeds", *titles], rows)


def _further(key: str, row: Values) -> str:
    value = row.get(key)
    if key == "kid":
        pair = value if isinstance(value, (list, tuple)) else (value, row.get("kid_error"))
        return with_error(pair[0], pair[1], 1)
    if key == "correlation":
        return " / ".join(fixed(one, 3) for one in value) if value else MISSING
    return fixed(value, 3) if key == "agreement" else general(value)
