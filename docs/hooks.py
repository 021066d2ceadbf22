"""Pages of the site that are not in docs/: the measured results, and the configuration from its dataclasses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from unimetric.arguments import Command
from unimetric.commands.train import train

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks/results", "configs")


def on_files(files: Files, config: Any) -> Files:
    """Add the files of `FOLDERS`, and of the folders in them, under their own paths."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file():
                uri = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    files.append(File.generated(config, "configuration.md", content=configuration_page()))
    return files


def configuration_page() -> str:
    """Every option of a run in a table for each section, from the dataclasses."""
    lines = [
        "# Configuration",
        "",
        "Every option of a run: under its section in a YAML file for `--config`, and on the "
        "[command line](command-line.md) as `--SECTION.OPTION`. `unimetric train --print_config` prints a whole file.",
    ]
    options = [option for option in Command("train", train).options if option.is_field]
    for group in dict.fromkeys(option.group for option in options):
        section, title = group.split(": ", 1)
        lines += ["", f"## {section}", "", f"{title}.", "", "| option | default | meaning |", "|---|---|---|"]
        for option in options:
            if option.group == group:
                default = "" if option.default is None else f"`{json.dumps(option.default)}`"
                named = all(choice in option.text for choice in option.choices)
                text = option.text + ("" if named else f" Values: {', '.join(option.choices)}.")
                lines.append(f"| `{option.name.partition('.')[2]}` | {default} | {text.replace('``', '`')} |")
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links out of the documentation's folder lead into the site."""
    for folder in FOLDERS:
        markdown = markdown.replace(f"](../{folder}", f"]({folder}")
    return markdown
