"""The house stands: imports only go down, never through the wall, and the light floors start without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "omni"

MAY_IMPORT = {  # room: the rooms below it that it may use
    "audio": set(),
    "model": {"audio"},
    "vocoder": {"audio"},
    "checkpoints": {"model", "vocoder"},  # a name → the folders of both; loads neither
    "engine": {"audio", "model", "vocoder"},
    "train": {"audio", "model", "vocoder", "checkpoints"},
    "serve": {"audio", "model", "vocoder", "checkpoints", "engine"},
    "conformance": {"audio", "model", "vocoder", "checkpoints", "engine"},
    "cli": set(),  # names its modules as strings, and imports the one that is asked for
}

LIGHT = {  # module: what must not come in with it. A controller or a page runs on a machine without torch.
    "omni": {"torch", "transformers", "ray", "gradio", "numpy"},
    "omni.cli": {"torch", "transformers", "ray", "gradio", "numpy"},
    "omni.audio.wav": {"torch", "transformers", "ray"},
    "omni.vocoder.streaming": {"torch", "transformers", "ray"},
    "omni.engine.scheduler": {"torch", "transformers", "ray"},
    "omni.checkpoints": {"torch", "transformers", "ray"},
    "omni.serve.protocol": {"torch", "transformers", "ray", "fastapi"},
    "omni.serve.errors": {"torch", "transformers", "ray", "fastapi"},
    "omni.serve.events": {"torch", "transformers", "ray", "fastapi"},
    "omni.serve.config": {"torch", "transformers", "ray"},
    "omni.serve.turn": {"torch", "transformers"},
    "omni.serve.metrics": {"torch", "transformers"},
    "omni.serve.controller": {"torch", "transformers", "gradio"},
    "omni.serve.openai_api": {"torch", "transformers", "gradio"},
    "omni.serve.client": {"torch", "transformers", "ray", "gradio"},
    "omni.serve.gradio_web": {"torch", "transformers", "ray"},
    "omni.serve.launch": {"torch", "transformers", "gradio"},
    "omni.serve.join": {"torch", "transformers", "gradio"},
    "omni.serve.status": {"torch", "transformers", "gradio"},
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


@pytest.mark.parametrize("module", LIGHT)
def test_starts_without_what_it_does_not_need(module: str):
    """Importing a light module brings none of the heavy packages in (asked of a fresh interpreter)."""
    if not PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py").exists() and module != "omni":
        pytest.skip(f"{module} is not there")
    heavy = sorted(LIGHT[module])
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_help_starts_without_heavy_packages():
    """`omni --help` answers without torch, ray or gradio."""
    code = "import sys\nfrom omni import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "gradio", "transformers", "numpy"} & set(done.stdout.splitlines()[-1].split())
