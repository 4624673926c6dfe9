"""The site: `make docs`, which is `sphinx-build -W -c docs . build/site`.

The repository itself is the source folder: a page has one source, which GitHub shows as well, and
the same relative links work in both. What a page gets beyond its source is in pages.py. No page
loads anything from elsewhere.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import pages

project = html_title = "PhaseGPT"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
source_suffix = dict.fromkeys((".md", ".ipynb", ".py"), "myst-nb")
include_patterns = pages.PATTERNS
# Not walked through.
exclude_patterns = [".*", "build", "dist", "runs", "outputs", "multirun", "wandb", "data"]
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_search_summary = False  # fetched, which a page opened as a file may not
nb_execution_mode = "off"  # the outputs are committed
nb_ipywidgets_js: dict[str, Any] = {}  # from other servers otherwise
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
maximum_signature_line_length = 80
toc_object_entries = False  # they would be copied into every page


def setup(app: Any) -> None:
    """Let pages.py add to what is read and to what is built."""
    app.connect("source-read", pages.read)
    app.connect("autodoc-process-docstring", pages.docstring)
    app.connect("autodoc-skip-member", pages.skip)
    app.connect("build-finished", pages.finish)
