"""Report scores: tables of the scores of networks, means and differences."""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from bvdm_data.evaluation.experiment import FIGURES
from bvdm_data.evaluation.report_html import (
    MISSING,
    Row,
    details,
    fixed,
    general,
    paragraph,
    settings_text,
    table,
    text,
    with_error,
)

TITLES = {"seg": "SEG", "det": "DET", "tra": "TRA", "lnk": "LNK", "bc": "BC(1)", "valid": "valid"}
TITLES |= {"found": "found", "found_dim": "dim found"}
"""Heads of the columns."""

EXPLAINED = """All scores run from 0 to 1, higher is better. SEG: mean overlap of segmented nuclei;
DET: detection; TRA: tracking; LNK: links between frames; BC(1): F1 of divisions, at most one frame
off; found: share of nuclei that a prediction covers by more than half; dim found: the same of the
dimmest tenth; valid: share of results that the challenge would accept, in the tables only where it
is not 1. ± is the standard deviation over the seeds."""
"""What the columns are."""

Values = Mapping[str, Any]


def heads(figures: Sequence[str] = FIGURES) -> list[str]:
    """Return the heads of the columns of scores.

    Args:
        figures: Which scores.
    """
    return [TITLES[one] for one in figures]


def columns(rows: Sequence[Values]) -> list[str]:
    """Return the scores that tables show: ``valid`` only where some result is not.

    Args:
        rows: :class:`bvdm_data.evaluation.experiment.Row` as dicts.
    """
    all_valid = all(row["mean"].get("valid") == 1 for row in rows)
    return [one for one in FIGURES if one != "valid" or not all_valid]


def means(row: Values, figures: Sequence[str] = FIGURES) -> list[str]:
    """Return the cells of the mean scores of an arm.

    Args:
        row: :class:`bvdm_data.evaluation.experiment.Row` as a dict.
        figures: Which scores.

    Returns:
        Name, number of seeds, and each score with its spread.
    """
    scores = [with_error(row["mean"].get(one), row["spread"].get(one)) for one in figures]
    return [text(row["arm"]), str(row["seeds"]), *scores]


def differences(rows: Sequence[Values], baseline: str, prefix: str = "") -> str:
    """Return a table of the differences to the baseline, those within the noise in grey.

    Args:
        rows: What :func:`bvdm_data.evaluation.experiment.compare` gave, as JSON values.
        baseline: Name of the arm that is compared with.
        prefix: Put before the title.

    Returns:
        HTML; empty where there is nothing to compare.
    """
    compared = [row for row in rows if row["arm"] != baseline and _any(row["gain"])]
    if not compared:
        return ""
    shown = columns(rows)
    cells = [
        Row([text(row["arm"]), str(row["seeds"]), *(_difference(row, one) for one in shown)])
        for row in compared
    ]
    title = f"{prefix}Difference to {baseline} ± standard error"
    return table(title[0].upper() + title[1:], ["arm", "seeds", *heads(shown)], cells) + _caution(
        min(row["seeds"] for row in compared)
    )


def settings_line(part: Values) -> str:
    """Return how networks were trained.

    Args:
        part: What may have ``settings``.

    Returns:
        HTML; empty without settings.
    """
    if not part.get("settings"):
        return ""
    return paragraph(f'<span class="soft">Settings: {settings_text(part["settings"])}.</span>')


def all_networks(trials: Sequence[Values]) -> str:
    """Return a table of every single network, to be opened by the reader.

    Args:
        trials: :class:`bvdm_data.evaluation.experiment.Trial` as dicts.

    Returns:
        HTML; empty without trials.
    """
    rows = []
    for trial in trials:
        scores = [fixed(trial[one]) for one in FIGURES]
        seconds = general(trial.get("seconds"))
        rows.append(Row([text(trial["arm"]), str(trial["seed"]), *scores, seconds]))
    titles = ["arm", "seed", *heads(), "seconds"]
    return details("Every network", table("Every network", titles, rows)) if rows else ""


def _difference(row: Values, one: str) -> str:
    gain, error, needed = (row[key].get(one) for key in ("gain", "error", "seeds_needed"))
    if gain is None:
        return MISSING
    noise = error is None or gain == 0 or abs(gain) < 2 * error
    said = ["noise unknown" if error is None else "within the noise"] if noise else []
    said.append(f"seeds needed: {general(needed)}")
    value = f"{fixed(gain, signed=True)} ± {fixed(error)}"
    remarks = "".join(f"<small>{remark}</small>" for remark in said)
    return f'<td class="noise">{value}{remarks}</td>' if noise else f"<td>{value}{remarks}</td>"


def _caution(seeds: int) -> str:
    """Say how often noise alone gives more than two standard errors (Student's t)."""
    if seeds < 2:
        return paragraph("One seed says nothing of the noise; three are the least that do.")
    share = 2 * float(stats.t.sf(2, seeds - 1))
    return paragraph(
        "Networks of the same seed are paired. Grey: smaller than two standard errors, so within "
        f"the noise. With {seeds} seeds, noise alone exceeds two standard errors in "
        f"{100 * share:.0f} % of cases. Seeds needed: with so many, a t-test at 5 % would call "
        "this difference one."
    )


def _any(figures: Mapping[str, float | None]) -> bool:
    return any(value is not None for value in figures.values())
