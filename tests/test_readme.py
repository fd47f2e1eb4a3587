"""What README.md and docs/ tell a reader to type is true today."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from command_lines import ROOT, Refused, check

from omni.cli import COMMANDS
from omni.serve.config import ServeConfig
from omni.serve.controller import make_app
from omni.serve.openai_api import ChatRequest
from omni.serve.turns_api import TurnOptions

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def command_lines(path: Path) -> list[list[str]]:
    """Every simple command of a page's sh blocks, as words; pipes and `&&` separate commands."""
    lines: list[list[str]] = []
    for text in (text for block in blocks(path, "sh") for text in _joined(block)):
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        line: list[str] = []
        for word in [*lexer, ";"]:
            if not re.fullmatch(r"[|&;]+", word):
                line.append(word)
            elif line:
                lines.append(line)
                line = []
    return lines


def _joined(block: str) -> list[str]:
    """Lines of a block, those that a backslash or an open quote continues put together."""
    lines, held = [], ""
    for line in block.splitlines():
        held += line
        if held.endswith("\\"):
            held = held[:-1]
            continue
        try:
            shlex.split(held, comments=True)
        except ValueError:  # no closing quotation
            held += "\n"
            continue
        lines.append(held)
        held = ""
    assert not held, f"unfinished command: {held}"
    return lines


def ids(value: object) -> str:
    return f"{value.relative_to(ROOT)}" if isinstance(value, Path) else shlex.join(value)[:60]


@pytest.mark.parametrize(("page", "words"), [(page, line) for page in PAGES for line in command_lines(page)], ids=ids)
def test_every_command_is_accepted(page: Path, words: list[str]):
    """Commands of ours pass their own argument parser or make's dry run."""
    check(words)


@pytest.mark.parametrize(
    "line",
    [
        "onmi up",
        "omni upp",
        "omni fetch --colour",
        "make dinner",
        "make up ARGS=--colour",
        "python -m omni.serve.gradio_web --colour",
    ],
)
def test_a_wrong_command_is_noticed(line: str):
    """The check itself works: an unknown program, subcommand, flag or target is refused."""
    with pytest.raises(Refused):
        check(line.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str):
    """`omni COMMAND --help` explains itself and says which arguments there are."""
    done = subprocess.run([sys.executable, "-m", "omni.cli", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: omni {command}")


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path):
    """Relative links and pictures name files that exist."""
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text()) + re.findall(r'src="([^"]+)"', page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_the_file_tree_is_true():
    """Every path of the README's tree exists, and every room of the package is in it."""
    (tree,) = (block for block in blocks(ROOT / "README.md", "text") if block.startswith("omni/"))
    folders: list[str] = []
    named = set()
    for line in tree.splitlines():
        depth, path = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], path]
        named.add("".join(folders).rstrip("/"))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    rooms = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("omni/*/__init__.py")}
    assert {room.removesuffix("/__init__.py") for room in rooms} <= named


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_examples_compile(page: Path):
    """Python in the pages is Python, and what it imports is installed."""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert importlib.util.find_spec(name.split(".")[0]), name


@pytest.mark.parametrize(
    ("page", "words"), [(page, line) for page in PAGES for line in command_lines(page) if line[0] == "curl"], ids=ids
)
def test_curl_asks_what_the_controller_answers(page: Path, words: list[str]):
    """A request in the pages has a route, a query and a body that the controller takes."""
    url = next(word for word in words if word.startswith("http://127.0.0.1:8000"))
    path, _, query = url.removeprefix("http://127.0.0.1:8000").partition("?")
    app = make_app(ServeConfig(model_name="mini", model="", vocoder=""), cluster=None)
    assert path in {route.path for route in app.routes}
    if path == "/v1/turns":
        TurnOptions.model_validate(dict(parse_qsl(query)))
    if path == "/v1/chat/completions":
        request = ChatRequest.model_validate_json(words[words.index("-d") + 1])
        assert request.model == "mini"
        assert not request.model_extra
