"""Report HTML: the parts that a page of the report is put together from."""

import html
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MISSING = "n/a"
"""What the page says where there is no number."""

MIME_TYPES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}
MIME_TYPES[".jpeg"] = MIME_TYPES[".jpg"]
"""Pictures that can be embedded, by the end of their names."""

STYLE = """
:root { color-scheme: light; --ink: #1d2429; --soft: #626c75; --line: #d6dce1; --pale: #f4f6f8;
  --mark: #a63c00; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 24px 20px 72px; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 16px; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 48px 0 8px; padding-top: 16px;
  border-top: 2px solid var(--ink); }
h3 { font-size: 1rem; margin: 24px 0 4px; }
p, dl, ol, ul { max-width: 80ch; margin: 8px 0; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 0;
  max-width: none; }
nav a { color: #00527f; display: inline-block; padding: 4px 0; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 16px; }
dt { color: var(--soft); }
dd { margin: 0; }
small, .soft { color: var(--soft); font-size: .875em; }
.wide { overflow-x: auto; margin: 12px 0 20px; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 4px; }
th, td { padding: 5px 12px 5px 0; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; border-bottom: 1.5px solid var(--ink); }
th:first-child { text-align: left; font-weight: 500; }
tbody th:first-child { position: sticky; left: 0; background: #fff; white-space: normal;
  min-width: 7.5rem; max-width: 17rem; }
td small { display: block; }
td.soft { font-size: inherit; }
td.reason { text-align: left; white-space: normal; min-width: 20rem; color: var(--soft); }
tr.group th { background: var(--pale); padding-left: 6px; font-weight: 600; }
tr.context > * { color: var(--soft); }
td.noise, td.noise small { color: #737c84; }
td.marked { color: var(--mark); font-weight: 600; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .875rem; margin: 4px 0 12px; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 12px 32px; align-items: start; margin: 16px 0; }
.side figure img { width: 100%; max-width: 520px; }
.picture { overflow-x: auto; }
.picture img { min-width: 680px; }
details { margin: 12px 0; }
summary { cursor: pointer; color: #00527f; padding: 6px 0; }
@media (max-width: 600px) {
  body { padding: 16px 16px 48px; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: 8px; }
  tbody th:first-child { max-width: 9rem; }
}
"""


class Row(NamedTuple):
    """A row of a table."""

    # HTML of the cells; the first one is the head of the row. A cell that begins with <td is taken
    # as it is
    cells: Sequence[str]
    kind: str = ""  # CSS class; "group" is a title over the rows that follow


def text(value: object) -> str:
    """Return the HTML of any text."""
    return html.escape(str(value))


def general(value: float | None, digits: int = 4) -> str:
    """Return a number of any size in a few digits, or what stands for a missing one."""
    if value is None or math.isnan(value):
        return MISSING
    if (value == round(value) and abs(value) < 1e6) or abs(value) >= 1e4:
        return _minus(f"{value:.0f}")
    return _minus(f"{value:.{digits}g}")


def fixed(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    """Return a number with the same number of decimals as all of its column."""
    if value is None or math.isnan(value):
        return MISSING
    return _minus(f"{value:{'+' if signed else ''}.{digits}f}")


def with_error(value: float | None, error: float | None, digits: int = 4) -> str:
    """Return a number with its spread or error."""
    if value is None:
        return MISSING
    return f'{fixed(value, digits)} <span class="soft">± {fixed(error, digits)}</span>'


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def table(title: str, head: Sequence[str], rows: Iterable[Row]) -> str:
    """Return a table in a box of its own that scrolls where the page is narrow."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(_row(row, len(head)) for row in rows)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{text(title)}">\n<table>'
        f"<caption>{text(title)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n"
        "</tbody></table>\n</div>\n"
    )


def _row(row: Row, columns: int) -> str:
    first, *others = row.cells
    if row.kind == "group":
        return f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{first}</th></tr>'
    cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in others)
    kind = f' class="{row.kind}"' if row.kind else ""
    return f'<tr{kind}><th scope="row">{first}</th>{cells}</tr>'


def section(name: str, title: str, *parts: str) -> str:
    """Return a section of the page."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{name}">\n<h2>{text(title)}</h2>\n{body}\n</section>\n'


def paragraph(content: str) -> str:
    """Return a paragraph."""
    return f"<p>{content}</p>"


def details(title: str, content: str) -> str:
    """Return something that the reader opens if it is of interest."""
    return f"<details><summary>{text(title)}</summary>\n{content}</details>\n"


def side_by_side(*parts: str) -> str:
    """Return parts beside each other, or below each other where the page is narrow."""
    kept = [f"<div>{part}</div>" for part in parts if part]
    return f'<div class="side">\n{"".join(kept)}\n</div>\n' if kept else ""


def figure(uri: str, caption: str, *, kind: str = "") -> str:
    """Return a picture with its caption."""
    box = f' class="{kind}"' if kind else ""
    return (
        f'<figure><div{box}><img src="{uri}" alt="{text(caption)}"></div>'
        f"<figcaption>{text(caption)}</figcaption></figure>\n"
    )


def embedded(content: bytes, mime: str) -> str:
    """Return a file as a ``data:`` URI, so that the page needs no other file."""
    return f"data:{mime};base64,{b64encode(content).decode('ascii')}"


def embedded_picture(path: Path) -> str:
    """Return a picture as a ``data:`` URI."""
    mime = MIME_TYPES.get(path.suffix.lower())
    if mime is None:
        raise ValueError(f"pictures must end in {', '.join(MIME_TYPES)}, got {path.name!r}")
    return embedded(path.read_bytes(), mime)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings in one line of HTML."""
    return ", ".join(f"{text(key.replace('_', ' '))} {_setting(v)}" for key, v in settings.items())


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({settings_text(value)})"
    if isinstance(value, (list, tuple)):
        return text(f"({', '.join(map(str, value))})")
    return "not set" if value is None else text(value)


def page(title: str, sections: Sequence[tuple[str, str, str]], head: str) -> str:
    """Return a whole page that needs nothing but itself."""
    links = "".join(f'<li><a href="#{name}">{text(name_)}</a></li>' for name, name_, _ in sections)
    body = "".join(section(*parts) for parts in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{text(title)}</h1>\n{head}\n</header>\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{body}</main>\n'
        "</body>\n</html>\n"
    )
