"""The documentation's site builds without a warning, and its pages load nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
