"""The repository's own promises: what lies where, which versions agree, and that imports run one way."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import cdlearn

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOP = {"notebooks", "cdlearn", "tests", "environment.yml", "pyproject.toml", "Makefile", "README.md", "LICENSE"}
TOP |= {"CITATION.cff", ".ci", ".devcontainer", ".github", ".gitignore"}
CONDA_NAMES = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}


def tracked() -> list[Path]:
    """What git tracks (and still exists); everything on disk where there is no git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def requirements(*extras: str) -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def constraints() -> dict[str, Version]:
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line.strip() and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pins.items()}


def test_the_top_level_holds_what_the_design_lists_and_nothing_else():
    assert {path.parts[0] for path in tracked()} <= TOP


def test_no_large_file_but_the_trained_pair():
    pair = Path("cdlearn/toyworld/pair")
    for path in tracked():
        assert pair in path.parents or (ROOT / path).stat().st_size < 3e6, path


def test_environment_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-e ."]}
    ranges = {re.split(r"[<>=!~ ]", line)[0]: line for line in conda}
    assert ranges.pop("python") == f"python{PROJECT['requires-python']}"
    ranges.pop("pip")
    wanted = {}
    for name, requirement in requirements("lab").items():
        name = CONDA_NAMES.get(name, name)
        wanted[name] = Requirement(f"{name}{requirement.specifier}")
    assert {name: Requirement(line) for name, line in ranges.items()} == wanted


def test_constraints_satisfy_every_range_that_is_pinned():
    pins = constraints()
    for name, requirement in requirements("lab", "test", "classroom", "eval", "gguf", "site").items():
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is outside {requirement.specifier}"


def test_requirements_are_ranges_with_a_floor_never_exact():
    for requirement in requirements(*PROJECT["optional-dependencies"]).values():
        operators = {clause.operator for clause in requirement.specifier}
        assert ">=" in operators and "==" not in operators, str(requirement)


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == cdlearn.__version__
    assert citation["license"] == PROJECT["license"] == "MIT"


def test_every_public_name_exists():
    assert sorted(cdlearn.__all__) == sorted(set(cdlearn.__all__))
    for name in cdlearn.__all__:
        assert hasattr(cdlearn, name), name


def test_everything_at_once_leaves_the_standard_library_alone():
    names = {}
    exec("import inspect\nfrom cdlearn import *", names)
    assert names["inspect"].__name__ == "inspect" and callable(cdlearn.inspect)


def test_every_action_is_pinned_by_its_commit():
    """A tag can be moved to other code; a commit cannot. The comment says which version it was."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    lines = [line.strip() for path in workflows for line in path.read_text(encoding="utf-8").splitlines()]
    uses = [line for line in lines if re.match(r"(- )?uses:", line)]
    assert len(uses) >= 10
    assert [line for line in uses if not re.search(r"uses: [\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d", line)] == []
