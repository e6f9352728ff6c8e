"""From the masters to what students get: no solutions, no hidden tests, no outputs, one folder and one zip each."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path

from cdlearn.classroom.grader.submissions import Notebook, marks, unlink

SETUP = """# Does nothing where cdlearn is installed (your machine, Binder), and installs it on Colab.
import importlib.util

if importlib.util.find_spec("cdlearn") is None:
    %pip install -q "{install}"
"""
_SECRET = re.compile(r"(BEGIN|END) +(SOLUTION|HIDDEN +TESTS)")


def find_masters(source: str | os.PathLike | None = None) -> dict[str, Path]:
    """Return assignment name -> master notebook. They live in the repository, not in the installed package.

    source: the folder that holds `NAME/NAME.ipynb`; None: `notebooks/assignments/source` of the clone or of the
    working folder. Raises FileNotFoundError that says so.
    """
    clone = Path(__file__).parents[3] / "notebooks" / "assignments" / "source"
    here = Path("notebooks") / "assignments" / "source"
    for folder in (clone, here) if source is None else (Path(source),):
        found = {path.stem: path for path in sorted(folder.glob("*/*.ipynb")) if path.stem == path.parent.name}
        if found:
            return found
    where = "here" if source is None else f"in {source}"
    raise FileNotFoundError(
        f"no masters {where}: they are in the repository (notebooks/assignments/source), not in the installed "
        "package. Run this in a clone, or give --source FOLDER."
    )


def build(
    out: str | os.PathLike,
    *,
    source: str | os.PathLike | None = None,
    names: Sequence[str] | None = None,
    install: str | None = None,
) -> list[Path]:
    """Write `out/NAME/NAME.ipynb` and `out/NAME.zip` for every assignment; returns the notebooks.

    names: only these. install: what pip installs on Colab (a name, a URL, a wheel); None: the repository that the
    package's own metadata names. Raises RuntimeError without nbgrader, or if something of a solution or a hidden test
    would have been left in.
    """
    masters = pick(find_masters(source), names)
    install = install or f"git+{repository()}"
    out = Path(out)
    written = []
    with tempfile.TemporaryDirectory(prefix="cdlearn-build-") as course:
        for name, notebook in releases(masters, Path(course)).items():
            _check_clean(name, notebook)
            for cell in notebook["cells"]:
                cell["source"] = unlink(cell["source"]) if cell["cell_type"] == "markdown" else cell["source"]
            setup = {"cell_type": "code", "id": "setup", "metadata": {}, "execution_count": None, "outputs": []}
            notebook["cells"].insert(1, setup | {"source": SETUP.format(install=install)})
            path = out / name / f"{name}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            extras = [file for file in masters[name].parent.rglob("*") if file.is_file() and file.suffix != ".ipynb"]
            files = [path]
            for file in sorted(extra for extra in extras if not any(p.startswith(".") for p in extra.parts)):
                files.append(path.parent / file.relative_to(masters[name].parent))
                files[-1].parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, files[-1])
            with zipfile.ZipFile(out / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for file in files:
                    archive.write(file, file.relative_to(out))
            written.append(path)
    return written


def repository() -> str:
    """Where the package says that it lives."""
    urls = metadata("cdlearn").get_all("Project-URL") or []
    return dict(line.split(", ", 1) for line in urls)["Repository"]


def pick(masters: dict[str, Path], names: Sequence[str] | None) -> dict[str, Path]:
    """The masters of these names; ValueError for a name that is none."""
    unknown = sorted(set(names or ()) - set(masters))
    if unknown:
        raise ValueError(f"no assignment {', '.join(unknown)}; there are {', '.join(masters)}.")
    return {name: path for name, path in masters.items() if not names or name in names}


def releases(masters: dict[str, Path], course: Path) -> dict[str, Notebook]:
    """Run nbgrader's generate_assignment in a course folder (which keeps the gradebook); returns the notebooks."""
    api = course_api(course)
    made = {}
    for name, path in masters.items():
        shutil.copytree(path.parent, course / "source" / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        result = api.generate_assignment(name)
        if not result["success"]:
            reason = (result.get("error") or result.get("log") or "").strip().splitlines()
            raise RuntimeError(f"{path}: nbgrader cannot make the release: {' '.join(reason[-2:])}")
        made[name] = json.loads((course / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8"))
        for cell in made[name]["cells"]:
            cell["source"] = "".join(cell["source"])
    return made


def course_api(course: Path, **sections: dict):
    """nbgrader's API on one course folder with a gradebook of its own. `sections` are nbgrader's options by class."""
    try:
        from nbgrader.apps import NbGraderAPI
        from traitlets.config import Config
    except ImportError as error:
        raise RuntimeError("this needs nbgrader: pip install 'cdlearn[classroom]'") from error
    use_own_programs()
    config = Config()
    config.CourseDirectory.root = str(course)
    config.CourseDirectory.db_url = f"sqlite:///{course / 'gradebook.db'}"
    for name, options in sections.items():
        config[name].update(options)
    return NbGraderAPI(config=config)


def use_own_programs() -> None:
    """Put this Python's folder first on PATH: nbgrader calls `alembic` by name."""
    programs = os.path.dirname(sys.executable)
    path = os.environ.get("PATH", "").split(os.pathsep)
    if path[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, *path])


def _check_clean(name: str, notebook: Notebook) -> None:
    for number, cell in enumerate(notebook["cells"]):
        if _SECRET.search(cell["source"]) or cell.get("outputs"):
            raise RuntimeError(f"{name}: cell {number} of the release holds a solution, a hidden test or outputs.")
        if cell["cell_type"] == "code" and marks(cell).get("solution") and "NotImplementedError" not in cell["source"]:
            raise RuntimeError(f"{name}: the solution in cell {number} has no BEGIN SOLUTION that leaves a stub.")
