"""The docs: every link leads somewhere, every command is known to its parser, the reference is that
of the code, and the site has every page."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fasttrain.cli.app import app
from fasttrain.settings.recipes import recipe_names
from fasttrain_data.cli import app as data_app
from tests.reference_pages import PAGES

ROOT = Path(__file__).parents[1]
PAPERS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TREES: dict[str, Any] = {
    "fasttrain": typer.main.get_command(app),
    "fasttrain-data": typer.main.get_command(data_app),
}
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|^ {4,}.*$|`[^`]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Of headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads)
    return set(plain)


@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


def commands(text: str) -> Iterator[list[str]]:
    """Of code blocks: the lines that call one of our commands, as words."""
    joined = re.sub(r"\\\n *", "", text)
    for found in re.findall(r"^ {4,}(fasttrain(?:-data)? .+)$", joined, re.MULTILINE):
        line = re.split(r"\s{2,}#| # ", found)[0].strip()
        if not re.search(r"[\[\]<>|]|\.\.\.|&&", line):
            yield shlex.split(line)


@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_commands_are_known_to_the_parser(page: Path) -> None:
    for program, *words in commands(page.read_text(encoding="utf-8")):
        tree = TREES[program]
        while words and words[0].startswith("-"):  # of the command itself
            assert words[0] in {o for p in tree.params for o in p.opts}, (page.name, words)
            words = words[2 if words[0] == "--kernels" else 1 :]
        if not words:
            continue
        verb, *rest = words
        assert verb in tree.commands, (page.name, program, words)
        command = tree.commands[verb]
        known = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
        own = rest[: rest.index("--")] if "--" in rest else rest
        for word in own:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, (page.name, verb, word)
        if verb in ("pretrain", "finetune", "plan") and re.fullmatch(r"[a-z][\w-]+", rest[0]):
            assert rest[0] in recipe_names(), (page.name, rest)


def test_every_verb_has_an_example_that_its_parser_takes() -> None:
    tree = TREES["fasttrain"]
    for name, command in tree.commands.items():
        text = inspect.cleandoc(command.callback.__doc__ or "")
        example = re.search(r"^Example: (fasttrain .+)$", text, re.MULTILINE)
        assert example, f"{name} --help has no example"
        _, verb, *words = shlex.split(example[1])
        assert verb == name
        command.make_context(name, words)


@pytest.mark.parametrize("path", PAGES)
def test_the_reference_is_that_of_the_code(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text == PAGES[path](), "run: python -m tests.reference_pages"


def test_the_site_has_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed: list[str] = []
    for entry in site["nav"]:
        listed += [entry] if isinstance(entry, str) else next(iter(entry.values()))
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))
