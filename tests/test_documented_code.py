"""The commands and examples of the pages: options exist, examples run, links of the top pages lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toy_runs import make_images, options_file, unimetric
from unimetric.arguments import Command
from unimetric.cli import COMMANDS, main
from unimetric.packaged_configs import config_path

ROOT = Path(__file__).parents[1]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*(?:\.\w+)?(?![\w.]*\*)")
FOREIGN = {"--cpus", "--nnodes", "--nproc-per-node", "--shm-size", "--user"}
"""Options of other programs that the text names."""
INNER = re.compile(r"\$\(([^()]*)\)")
"""A command within another."""
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def blocks(page: Path, language: str) -> list[str]:
    return [content for kind, content in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, without comments, redirections and variables before them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not set(token) <= set("();<>|&"):
            words.append(token)
            continue
        while words and re.match(r"\w+=", words[0]):
            del words[0]
        if words:
            yield words
        words = []


def documented_commands(page: Path) -> list[list[str]]:
    """The arguments of each ``unimetric`` in the page's blocks, also in a container or in ``$(...)``."""
    found = []
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            whole = "; ".join([INNER.sub("VALUE", line.partition(" #")[0]), *INNER.findall(line)])
            for words in simple_commands(whole):
                for place, word in enumerate(words):
                    if word == "unimetric" and (not place or {*words[place + 1 : place + 2]} & {*COMMANDS}):
                        found.append(words[place + 1 :])
    return found


def identity(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def options_of(name: str) -> set[str]:
    return {f"--{option.name}" for option in Command(name, COMMANDS[name]).options} | {
        "--help",
        "--help-all",
        "--debug",
    }


@pytest.mark.parametrize("page", [page for page in PAGES if documented_commands(page)], ids=identity)
def test_the_commands_of_a_page_are_accepted(page: Path) -> None:
    """The function of each command is called with the options as they are typed."""
    for name, *arguments in documented_commands(page):
        if {"--help", "--help-all", "--print_completion"} & {name, *arguments}:
            assert main([name, *arguments]) == 0
            continue
        received: list[dict[str, Any]] = []
        command = Command(name, COMMANDS[name])
        command.function = lambda received=received, **given: len(received.append(given) or ())
        values = command.parse(arguments)
        for config in values.get("config", []):
            assert config.endswith(".yaml") or config_path(config).is_file()
        assert command.call(values) == 0
        assert received, arguments


def test_the_options_in_the_text_exist() -> None:
    every = {name: options_of(name) for name in COMMANDS}
    known = set().union(*every.values(), FOREIGN, {"--version", "--print_completion"})
    unknown = set()
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for span in SPAN.findall(text):
            words = span.split()
            allowed = every[words[1]] if words[0] == "unimetric" and words[1:2] and words[1] in every else known
            if (
                words[:1] == ["unimetric"]
                and len(words) > 1
                and words[1] not in every
                and words[1] not in known | {"COMMAND"}
            ):
                unknown.add((identity(page), span))
            unknown |= {(identity(page), span) for option in OPTION.findall(span) if option not in allowed}
    assert unknown == set()


@pytest.mark.parametrize("page", TOP, ids=identity)
def test_the_links_of_the_top_pages_lead_somewhere(page: Path) -> None:
    """Those of the documentation are checked where its site is built."""
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "//" not in link and ":" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


# --- Python ---------------------------------------------------------------------------------------------------------

EXAMPLES = [page for page in PAGES if page.parent.name != "adding" and blocks(page, "python")]
NOT_RUN = ("guarantee=", "mteb", "push_to_hub", "sys.argv")
"""Words of examples that need a calibration, a network or a fault; the exported file's is run in test_export."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples name."""
    root = tmp_path_factory.mktemp("documented")
    shoes, lamps = (make_images(root / name, seed=seed) for seed, name in enumerate(("shoes", "lamps")))
    options = options_file(root / "options.yaml", training={"steps": 2}, model={"embedding_size": 128})
    assert unimetric("train", shoes, lamps, "--out", root / "runs/mine", "--config", options) == 0
    for number, name in enumerate(("a", "b", "photo", "query", "front", "side")):
        with Image.open(shoes / f"c{number}/0.png") as image:
            image.save(root / f"{name}.jpg")
    rows = [f"{path},{path.parent.name},shoes,{number}" for number, path in enumerate(sorted(shoes.rglob("*.png")))]
    (root / "catalogue.csv").write_text("\n".join(("path,label,dataset,price", *rows)))
    options = ("--db", root / "catalogue.db", "--device.accelerator", "cpu")
    assert unimetric("index", root / "runs/mine", root / "catalogue.csv", *options) == 0
    return root


@pytest.mark.parametrize("page", EXAMPLES, ids=identity)
def test_the_examples_of_a_page_run(page: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, with the names that the text takes for granted."""
    monkeypatch.chdir(world)
    random = np.random.default_rng(0)
    vectors, theirs = random.normal(size=(2, 40, 128)).astype(np.float32)
    paths = sorted(map(str, (world / "shoes").rglob("*.png")))
    given: dict[str, Any] = {
        "vectors": vectors, "our_vectors": vectors, "their_vectors": theirs, "images": paths[:3], "paths": paths,
        "labels": [Path(path).parent.name for path in paths], "datasets": ["shoes"] * 40,
    }  # fmt: skip
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if not any(word in block for word in NOT_RUN):
            names |= given
            exec(compile(block, identity(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", EXAMPLES, ids=identity)
def test_what_the_examples_import_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unimetric"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []
