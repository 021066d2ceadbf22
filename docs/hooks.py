"""The site's pages include the measured results, which lie beside the documentation and not in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks/results", "configs")


def on_files(files: Files, config: Any) -> Files:
    """Add the files of `FOLDERS`, and of the folders in them, under their own paths."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file():
                uri = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links out of the documentation's folder lead into the site."""
    for folder in FOLDERS:
        markdown = markdown.replace(f"](../{folder}", f"]({folder}")
    return markdown
