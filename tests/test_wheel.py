"""A wheel built from this folder, installed elsewhere without the clone, decodes with the embedded pair.

The environment sees the packages of the one that runs the tests by a path file, so torch is not installed again; the
release workflow tries the wheel in an empty one.
"""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from masters import MASTERS, hidden_lines

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def quiet(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=1200, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    quiet(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT)
    (found,) = folder.glob("cdlearn-*.whl")
    return found


def test_the_wheel_holds_the_package_and_the_pair_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for model in ("expert", "amateur", "early"):
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            assert f"cdlearn/toyworld/pair/{model}/{file}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cdlearn"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".bin", ".pt", ".ipynb"))]
    assert wheel.stat().st_size < 25e6


def test_the_wheel_holds_no_hidden_test_and_no_master(wheel):
    archive = zipfile.ZipFile(wheel)
    text = "\n".join(archive.read(name).decode() for name in archive.namelist() if name.endswith((".py", ".md")))
    hidden = [line for path in MASTERS for line in hidden_lines(path.stem, "HIDDEN TESTS")]
    assert len(hidden) > 20 and not [line for line in hidden if line in text]


def test_the_wheel_decodes_without_the_clone(wheel, tmp_path):
    quiet(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    quiet(python, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", wheel)
    inner = Path(quiet(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (inner / "outer.pth").write_text(
        sysconfig.get_path("purelib")
    )  # its own path files, the clone's among them, stay out
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env = clean | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    elsewhere = {"cwd": tmp_path, "env": env}
    where = quiet(python, "-c", "import cdlearn; print(cdlearn.__file__)", **elsewhere)
    assert str(tmp_path) in where
    out = quiet(python, "-m", "cdlearn", "--no-stream", input="Ada had a red\n", **elsewhere)
    assert len(out.split()) >= 3
    assert "everything works" in quiet(tmp_path / "venv" / python.parent.name / "cdlearn", "doctor", **elsewhere)
