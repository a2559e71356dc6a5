"""Sphinx: how ``make docs`` makes one site of these pages and of the docstrings."""

import importlib.metadata

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

project = "bvdm_data"
author = "The bvdm_data authors"
release = importlib.metadata.version("bvdm-data")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["conf.py", "evaluation"]
# The player of the first page; "make docs" makes it ahead of the site.
html_extra_path = ["../build/player.html"]

html_theme = "furo"
html_title = f"bvdm_data {release}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_show_sourcelink = False

myst_heading_anchors = 3

add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False


def keep_sentences(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from taking what is ahead of a colon for the type of a constant."""
    if what in ("data", "attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def nest_sections(app: Sphinx, doctree: nodes.document) -> None:
    """Put all sections of a page below its first title, so that it is one entry in the contents."""
    sections = [node for node in doctree.children if isinstance(node, nodes.section)]
    for section in sections[1:]:
        doctree.remove(section)
        sections[0] += section


def open_files(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Let links to files, such as the report, open them; Sphinx would have them downloaded."""
    for node in list(doctree.findall(addnodes.download_reference)):
        place = f"_downloads/{node['filename']}"
        node.replace_self(nodes.reference("", "", *node.children, refuri=place, internal=True))


def setup(app: Sphinx) -> None:
    """Add what the extensions do not do."""
    app.connect("autodoc-process-docstring", keep_sentences, priority=100)  # ahead of napoleon
    app.connect("doctree-read", nest_sections, priority=100)  # ahead of the table of contents
    app.connect("doctree-resolved", open_files)
