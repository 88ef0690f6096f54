"""The site: `make docs-site`. Its pages are the Markdown files of the repository as they stand, and the docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "flex-job"
author = "the flex-job authors"
html_title = project

# The repository is the source folder, so that README files of the hosts are pages where they are and links hold.
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "docs/*.md", "integration/*/README.md"]
exclude_patterns = [".*", "build", "tests", "flex_job", "job_specs", "demo_project", "*.egg-info"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "mathml"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # by the browser itself: no network, no script
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
pygments_style = "friendly"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}


def plain(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Docstrings are plain text: what reStructuredText would take for markup is kept as it is, and `x` is code."""
    for number, line in enumerate(lines):
        pieces = re.split(r"(`[^`]+`)", line)
        for at, piece in enumerate(pieces):
            is_code = at % 2 == 1
            pieces[at] = f"`{piece}`" if is_code else re.sub(r"([\\*|]|(?<=\w)_\b)", r"\\\1", piece)
        lines[number] = "".join(pieces)


def setup(app):  # type: ignore[no-untyped-def]
    app.connect("autodoc-process-docstring", plain)
