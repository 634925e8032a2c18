"""The project as a whole: its root is closed, its version is one, and what it ships is complete."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import orchestrator

ROOT = Path(__file__).parent.parent
FILES = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "inventory.yaml", "pyproject.toml", ".gitignore"}
FOLDERS = {".ci", "docs", "orchestrator", "quant", "scripts", "tests", "workers"}


def tracked() -> list[str]:
    """Every file in the repository, or below this folder where there is no git."""
    listed = subprocess.run(("git", "ls-files"), cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split("\n")[:-1]


def test_the_root_holds_only_what_the_design_names() -> None:
    roots = {path.split("/")[0] for path in tracked()}
    assert roots == FILES | FOLDERS


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == orchestrator.__version__


def test_nothing_committed_names_a_machines_path() -> None:
    """Nor the folders in which this project happens to be built."""
    words = ("/" + "work/", "/" + "tmp/venv", "/" + "root/.pyenv", "/" + "opt/pypi")
    found = [
        f"{path}: {word}"
        for path in tracked()
        for word in words
        if (ROOT / path).is_file() and word in (ROOT / path).read_text(errors="replace")
    ]
    assert found == []


def test_the_wheel_holds_every_module_and_the_agent(tmp_path: Path) -> None:
    """hatchling ignores a listed package that is missing: look into the built wheel."""
    words = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT))
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("meshctl-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    ours = {path for path in tracked() if path.split("/")[0] in ("orchestrator", "quant", "workers")}
    assert ours <= held
    assert "workers/agent.py" in held


def test_the_project_declares_what_it_imports() -> None:
    """Every third-party package imported by the product is a dependency by name."""
    declared = {
        re.split(r"[<>=\[ ]", entry)[0].lower().replace("_", "-")
        for entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    provided = {"yaml": "pyyaml", "llama_cpp": "llama-cpp-python", "markdown_it": "markdown-it-py"}
    imports = re.compile(r"^\s*(?:import|from) (\w+)", re.MULTILINE)
    sources = [
        ROOT / path
        for path in tracked()
        if path.endswith(".py") and path.split("/")[0] in FOLDERS - {"tests", "scripts"}
    ]
    named = {name for source in sources for name in imports.findall(source.read_text())}
    own = {"orchestrator", "quant", "workers", "matplotlib"}
    foreign = {name for name in named if name not in sys.stdlib_module_names} - own
    assert {provided.get(name, name.replace("_", "-")) for name in foreign} <= declared
