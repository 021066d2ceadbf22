"""The documentation's site builds without a warning, and its pages load nothing from elsewhere."""

from __future__ import annotations

import functools
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import barriers, overflows

ROOT = Path(__file__).parents[1]
LOADED = re.compile(r"""<(?:script|link|img|iframe)[^>]*?(?:src|href)=["']?(https?:)?//(?!www\.w3\.org)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_results_are_part_of_the_site(site: Path) -> None:
    assert "harmonic" in (site / "benchmarks/results/benchmark_uml8_mini.html").read_text()
    assert (site / "benchmarks/results/search.json").read_bytes() == (
        ROOT / "benchmarks/results/search.json"
    ).read_bytes()


def test_docstrings_are_part_of_the_site(site: Path) -> None:
    page = (site / "api/embedder.html").read_text()
    assert "from_pretrained" in page
    # An example in a docstring is code, not a quotation within a quotation within a quotation.
    assert "<blockquote>" not in (site / "api/losses.html").read_text()


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert [page.name for page in pages if LOADED.search(page.read_text().replace('rel="canonical"', ""))] == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that logs nothing."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


class Site(http.server.ThreadingHTTPServer):
    """A server that refuses none of the connections that a browser opens at once."""

    request_queue_size = 128


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site behind a server."""
    with Site(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


PAGES = ("index.html", "search.html", "api/evaluation.html", "benchmarks/results/benchmark_claim.html")
VIEWS = ((1280, "light"), (768, "light"), (360, "dark"))
QUICK = {
    *((1280, "light", name) for name in ("index.html", "api/evaluation.html")),
    *((360, "dark", name) for name in ("index.html", "benchmarks/results/benchmark_claim.html")),
}


@pytest.mark.parametrize(
    ("width", "scheme", "name"),
    [
        pytest.param(*view, name, marks=() if (*view, name) in QUICK else pytest.mark.soak)
        for view in VIEWS
        for name in PAGES
    ],
)
def test_nothing_keeps_people_out(address: str, browser: Any, axe: str, width: int, scheme: str, name: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{address}/{name}", wait_until="networkidle")
    page.wait_for_selector("[aria-label='Search this site']", state="attached")
    assert barriers(page, axe) == []
    assert not overflows(page)
    context.close()


def test_the_search_works_behind_a_server(address: str, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{address}/index.html", wait_until="networkidle")
    page.click("[data-md-component=search-query]")
    page.keyboard.type("threshold")
    page.wait_for_selector(".md-search-result__item a", state="attached")
    page.close()


def test_the_search_names_the_server_that_it_needs(site: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    note = page.locator(".site-note")
    assert note.is_visible()
    assert "python -m http.server" in note.inner_text()
    page.close()


def test_the_api_pages_list_what_users_call(site: Path) -> None:
    listed = {
        name: set(re.findall(r'<h[23] id="([^"]*)"', (site / "api" / f"{name}.html").read_text()))
        for name in ("search", "embedder", "evaluation", "data", "losses", "training")
    }
    for name in ("search", "search_item", "search_together", "add", "delete", "open", "create"):
        assert f"unimetric.search.index.SearchIndex.{name}" in listed["search"]
    for name in ("writer", "merge", "signature_rows", "maintain"):
        assert f"unimetric.search.index.SearchIndex.{name}" not in listed["search"]
    assert "unimetric.models.embedder.Embedder.encode" in listed["embedder"]
    assert "unimetric.evaluation.evaluate" in listed["evaluation"]
    assert not any("judge" in name or "TILE" in name for name in listed["evaluation"])
