"""The house stands: imports only go down, never through the wall, and the light floors start without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "omni"

MAY_IMPORT = {  # room: the rooms below it that it may use
    "audio": set(),
    "graphs": set(),  # recorded CUDA graphs, of whatever function
    "model": {"audio"},
    "vocoder": {"audio", "graphs"},
    "checkpoints": {"model", "vocoder"},  # a name → the folders of both; loads neither
    "engine": {"audio", "graphs", "model", "vocoder"},
    "train": {"audio", "model", "vocoder", "checkpoints"},
    "serve": {"audio", "model", "vocoder", "checkpoints", "engine"},
    "conformance": {"audio", "model", "vocoder", "checkpoints", "engine"},
    "cli": set(),  # names its modules as strings, and imports the one that is asked for
}

LIGHT = {  # what must not come in with these modules: a controller or a page runs on a machine without torch
    ("torch", "transformers", "ray", "gradio", "fastapi", "numpy"): ["omni", "omni.cli"],
    ("torch", "transformers", "ray", "gradio", "fastapi"): [
        "omni.audio.wav",
        "omni.vocoder.streaming",
        "omni.checkpoints",
        "omni.serve.protocol",
        "omni.serve.errors",
        "omni.serve.config",
        "omni.serve.events",
        "omni.serve.client",
        "omni.serve.realtime_client",
        "omni.serve.answer",
        "omni.serve.status",
        "omni.serve.join",
        "omni.serve.launch",
        "bench.command",
        "bench.load",
    ],
    ("torch", "transformers", "ray"): ["omni.serve.gradio_web", "omni.serve.controller"],
    ("torch", "transformers"): ["omni.serve.driver", "omni.serve.deployments", "omni.serve.applications"],
}


def room(module: str) -> str | None:
    """omni.model.llm → model; None for the package itself and for what is not ours."""
    parts = module.split(".")
    return parts[1] if parts[0] == "omni" and len(parts) > 1 else None


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import of ours in a file, those inside functions too."""
    package = ("omni", *path.relative_to(PACKAGE).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # `from omni import model` names a room in its list
            found += [(node.lineno, f"{module}.{name.name}" if module == "omni" else module) for name in node.names]
    return [(line, module) for line, module in found if room(module)]


def wrong(path: Path) -> list[str]:
    here = room(".".join(("omni", *path.relative_to(PACKAGE).with_suffix("").parts)))
    allowed = MAY_IMPORT.get(here, set()) | {here}
    return [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {module}"
        for line, module in imports(path)
        if room(module) not in allowed and module != "omni.__version__"
    ]


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.stem.startswith("__"))


def test_imports_only_go_down():
    """No file imports a floor above its own, and model and vocoder never import each other."""
    assert [line for path in sources() for line in wrong(path)] == []


def test_omni_runs_without_its_measurements():
    """bench/ stands above everything: no file of the package imports it."""
    named = {
        (path.name, name.split(".")[0])
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert [file for file, package in named if package == "bench"] == []


def test_every_room_has_a_floor():
    """A new folder or module beside the rooms has to say where it stands."""
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources()} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("audio", "import omni.model"),
        ("model", "from omni.vocoder import hifigan"),
        ("vocoder", "def f():\n    from omni import model"),
        ("engine", "from omni.train.units import kmeans"),
        ("train", "from ..engine import slots"),
        ("vocoder", "import omni.serve.protocol as p"),
    ],
    ids=lambda value: value.split()[-1] if " " in value else value,
)
def test_a_forbidden_import_is_seen(room: str, line: str, tmp_path: Path, monkeypatch):
    """The check itself works: each kind of import statement that goes up or through the wall is reported."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "omni")
    path = tmp_path / "omni" / room / "new.py"
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(wrong(path)) == 1


@pytest.mark.parametrize(("heavy", "modules"), LIGHT.items(), ids=lambda names: names[-1])
def test_starts_without_what_it_does_not_need(heavy: tuple[str, ...], modules: list[str]):
    """Importing light modules brings none of the heavy packages in (asked of a fresh interpreter)."""
    ask = "importlib.import_module({module!r}); print({module!r}, *{heavy!r} & set(sys.modules))"
    code = "\n".join(["import importlib, sys", *(ask.format(module=each, heavy=set(heavy)) for each in modules)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if " " in line][:1] == []


def test_the_scheduler_decides_without_torch():
    """What runs next is decided in plain Python: the scheduler names no tensor library."""
    tree = ast.parse((PACKAGE / "engine" / "scheduler.py").read_text())
    named = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    named |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert not {"torch", "transformers", "numpy"} & {name.split(".")[0] for name in named}


def test_help_starts_without_heavy_packages():
    """`omni --help` answers without torch, ray or gradio."""
    code = "import sys\nfrom omni import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "gradio", "transformers", "numpy"} & set(done.stdout.splitlines()[-1].split())
