"""The site as `make docs` builds it: complete, without another server, whole at two widths.

Slow, and skipped without the extra docs, which neither `make test` nor `make test-all` installs:
these tests run only where someone has installed it, after `make docs`.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from browser import browser, faults, needs_browser
from helpers import ROOT

__all__ = ["browser"]
EXTRA = ("sphinx", "furo", "myst_nb")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, EXTRA)),
        reason="needs the extra docs: pip install -c constraints.txt -e '.[docs]'",
    ),
]
#: Attributes by which a page loads something; a link waits for a click.
LOADS = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """The ids of a page, where its links lead, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        self.links += [values["href"]] if tag == "a" and "href" in values else []
        self.loads += [values[LOADS[tag]]] if LOADS.get(tag) in values else []


read = functools.cache(Page)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "html"
    given = ("-q", "-W", "--keep-going", "-c", "docs", "-d", str(out.parent / "trees"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *given, ".", str(out)],
        **{"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 900},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    wrong = []
    for path in sorted(site.rglob("*.html")):
        for link in read(path).links:
            to = urlsplit(link)
            if to.scheme or (link.startswith("#") and not to.fragment):
                continue
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            there = target.is_file() and target.is_relative_to(site)
            if there and to.fragment and target.suffix == ".html":
                there = unquote(to.fragment) in read(target).ids
            wrong += [] if there else [f"{path.relative_to(site)}: {link}"]
    assert wrong == []


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 80
    elsewhere = {load for path in pages for load in read(path).loads if urlsplit(load).netloc}
    assert elsewhere == set()
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert "url(http" not in text and "url(//" not in text and "@import" not in text, path


@needs_browser
def test_every_page_fits_a_desk_and_a_phone_and_asks_for_nothing(site: Path, browser: Any) -> None:
    wrong = [
        f"{path.relative_to(site)}: {fault}"
        for path in sorted(site.rglob("*.html"))
        for width in (1280, 390)
        for fault in faults(browser, path, width)
    ]
    assert wrong == []
