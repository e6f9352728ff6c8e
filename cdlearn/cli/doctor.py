"""`cdlearn doctor`: one line for each thing that can be wrong with an installation, and its fix."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from huggingface_hub import constants as hub
from packaging.requirements import Requirement
from transformers import PreTrainedModel

import cdlearn
from cdlearn.cli import options
from cdlearn.methods import METHODS, Decoder, Models, build
from cdlearn.pairs import Pair
from cdlearn.pairs.checkpoint import native
from cdlearn.pairs.loading import pick_device
from cdlearn.sources.probes import goes_on_by, holes_show, known

OK, NOTE, BROKEN = "ok", "note", "BROKEN"
Finding = tuple[str, str, str]  # (state, what, detail and fix)


def check_installation() -> Iterator[Finding]:
    """Name what is there: versions, the device that "auto" picks, the folder for models."""
    yield OK, "python", platform.python_version()
    yield OK, "cdlearn", cdlearn.__version__
    for requirement in map(Requirement, importlib.metadata.requires("cdlearn") or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield check_requirement(requirement)
    for name, why in (("jupyterlab", "the notebooks"), ("jupyterlab_widgets", "the token inspector")):
        found = check_requirement(Requirement(name))
        yield found if found[0] == OK else (NOTE, name, f"not installed, for {why}; fix: pip install -e '.[lab]'")
    device = pick_device()
    if native(device, torch.bfloat16):
        dtype = "bfloat16 for bfloat16 checkpoints (it computes in it; float32: twice the time and memory)"
    else:
        dtype = "float32 for bfloat16 checkpoints (bfloat16: half the memory, slower prompts)"
    yield OK, "device", f"{device}, {dtype}"
    yield OK, "threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores; to change: OMP_NUM_THREADS=n"
    if device.type != "cuda" and shutil.which("nvidia-smi"):
        yield NOTE, "cuda", "an NVIDIA driver is here, but torch cannot use it; fix: install a CUDA build of torch"
    cache = Path(hub.HF_HUB_CACHE)
    parent = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    if os.access(parent, os.W_OK):
        yield OK, "model cache", f"{cache}{', offline (HF_HUB_OFFLINE=1)' if hub.HF_HUB_OFFLINE else ''}"
    else:
        yield NOTE, "model cache", f"{cache} cannot be written; fix: set HF_HOME to a folder of yours"


def check_requirement(requirement: Requirement) -> Finding:
    """Say whether one requirement is installed in its range."""
    fix = f"fix: pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return BROKEN, requirement.name, f"not installed; {fix}"
    if not requirement.specifier.contains(version, prereleases=True):
        return BROKEN, requirement.name, f"{version} is outside {requirement.specifier}; {fix}"
    return OK, requirement.name, version


def check_pair() -> Iterator[Finding]:
    """Load the embedded pair and decode with every method: the cached loop must equal the naive one."""
    start = time.perf_counter()
    try:
        pair, early = cdlearn.load_pair(), cdlearn.load_expert("early", progress=False).expert
    except Exception as error:  # whatever it is, the doctor's answer is a line
        yield BROKEN, "embedded pair", f"{_reason(error)}; fix: pip install --force-reinstall --no-deps . in a clone"
        return
    yield OK, "embedded pair", f"loaded in {time.perf_counter() - start:.2f} s"
    equal = []
    for name in METHODS:
        try:
            wrong = _difference(lambda name=name: build(Models(pair, early), name), pair)
        except Exception as error:
            wrong = _reason(error)
        if wrong:
            yield BROKEN, name, f"{wrong}; fix: report it with these lines"
        else:
            equal.append(name)
    yield OK, "methods", f"cached and naive decoding agree: {', '.join(equal)}"


def check_model(role: str, model: PreTrainedModel) -> Iterator[Finding]:
    """Ask a model what the library relies on: a few tokens, see `cdlearn.sources.probes`."""
    source = cdlearn.CachedLM(model)
    most = known(goes_on_by, model, source) if source.cache_name else 0
    if most > 1:
        yield OK, f"{role}: cache", "several tokens fed to it score as in one pass"
    else:
        why = (
            "goes on by one token: more at once read the text again" if most else "none to use: every step reads it all"
        )
        yield BROKEN if source.masks else NOTE, f"{role}: cache", why
    if source.masks and not known(holes_show, model, source):
        yield OK, f"{role}: batches", "a masked column moves nothing"
    else:
        yield NOTE, f"{role}: batches", "a masked column would show: such rows are computed one by one"
    try:
        cdlearn.DoLa(model, layers=[0])
        yield OK, f"{role}: layers", "DoLa and EarlyExit read the last one as the model does"
    except (TypeError, ValueError) as error:
        yield NOTE, f"{role}: layers", str(error)


def _difference(make: Callable[[], Decoder], pair: Pair) -> str:
    """What is wrong, if a greedy loop does not pick what fresh sources, which remember nothing, score best."""
    ids = pair.tokenizer("Ada had a red", return_tensors="pt").input_ids
    made = make()(ids, temperature=0.0, max_new_tokens=8, eos_token_ids=(), trace=False, progress=False)
    for token in made.token_ids:
        best = make().source(ids)[0, -1].argmax()
        if int(best) != token:
            return "cached and naive decoding differ"
        ids = torch.cat([ids, best.view(1, 1)], dim=1)
    return "" if len(made.token_ids) == 8 else f"decoded {len(made.token_ids)} tokens of 8"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def main(argv: list[str]) -> int:
    """`cdlearn doctor`: print the findings; 1 if something is broken."""
    parser = options.Parser(prog="cdlearn doctor", description="Check the installation, and models if named.")
    options.add_models(parser)
    args = parser.parse_args(argv)
    broken = _show(chain(check_installation(), check_pair()))
    if args.expert or args.amateur:
        pair = options.open_pair(args, ("greedy",))
        print(pair.describe())
        for role, model in (("expert", pair.expert), ("amateur", pair.amateur)):
            broken += 0 if model is None else _show(check_model(role, model))
    print("everything works" if not broken else f"{broken} broken: see the fixes above")
    return 1 if broken else 0


def _show(findings: Iterable[Finding]) -> int:
    """Print them; how many are broken."""
    broken = 0
    for state, what, detail in findings:
        broken += state == BROKEN
        print(f"{state:7}{what:20}{detail}", flush=True)
    return broken
