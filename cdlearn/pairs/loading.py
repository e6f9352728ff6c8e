"""Where models come from: devices, folders, the hub, and what to say when something is missing."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants as hub
from huggingface_hub import get_session, hf_hub_download, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from cdlearn.checks import short
from cdlearn.pairs.checkpoint import Checkpoint, free_memory, need_gguf, pick_dtype, plain, read_checkpoint

# transformers imports lazily: pay for the classes of the embedded pair now, so that load_pair() is quick
importlib.import_module("transformers.models.llama.modeling_llama")

EMBEDDED = Path(__file__).parent.parent / "toyworld" / "pair"
EMBEDDED_NAMES = ("expert", "amateur", "early")
PLACE_OPTIONS = ("revision", "subfolder", "gguf_file")  # where in a hub id or folder a model lies


def pick_device() -> torch.device:
    """The device that "auto" means for models that are not embedded: CUDA, else MPS, else CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def is_embedded(source: Any) -> bool:
    return isinstance(source, str) and source in EMBEDDED_NAMES


def label(source: Any, revision: str = "", subfolder: str = "", gguf_file: str = "") -> str:
    """The name of a source in messages: never a long absolute path."""
    if is_embedded(source):
        return f"embedded {source}"
    model = isinstance(source, PreTrainedModel)
    name = gguf_file or (source.name_or_path or type(source).__name__ if model else os.fspath(source))
    name = os.path.basename(os.path.abspath(name)) if model or gguf_file or os.path.exists(name) else name
    return "/".join(filter(None, (name, subfolder))) + (f"@{revision}" if revision else "")


def for_each_role(value: Any, roles: dict, argument: str) -> dict:
    """One device (dtype, revision, ...) for every role, or one each; "auto" stays a word."""
    values = list(value) if isinstance(value, (tuple, list)) else [value] * len(roles)
    if len(values) != len(roles):
        raise ValueError(f"{argument}={short(value)} must be one value, or one each for {' and '.join(roles)}.")
    if argument in PLACE_OPTIONS:
        if not all(v is None or (isinstance(v, str) and v) for v in values):
            raise TypeError(f"{argument}={value!r} must be a name, or one each for {' and '.join(roles)}.")
        return dict(zip(roles, values))
    parse = _parse_device if argument == "device" else _parse_dtype
    return {role: v if isinstance(v, str) and v == "auto" else parse(v) for role, v in zip(roles, values)}


def _parse_device(value: Any) -> torch.device:
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f'device={short(value)} must be "auto", a string such as "cuda:0", or a torch.device.')
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f'device={str(value)!r} cannot be used here ({reason}): try "auto" or "cpu".') from error
    return device


def _parse_dtype(value: Any) -> torch.dtype:
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        kind = ValueError if isinstance(value, (str, torch.dtype)) else TypeError
        raise kind(
            f'dtype={short(value)} must be "auto", "float32", "bfloat16", "float16" or another floating torch dtype.'
        )
    return dtype


def where(role: str, source: Any) -> tuple[str, bool]:
    """What `from_pretrained` needs, and whether it is local: complains early about what is nowhere."""
    if is_embedded(source):
        if not (EMBEDDED / source / "config.json").is_file():
            raise FileNotFoundError(f"the embedded {source} is missing from {EMBEDDED}: install cdlearn again.")
        return str(EMBEDDED / source), True
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise TypeError(f"{role} must be a hub id, a local folder, a .gguf file or a transformers object, got {kind}.")
    text, path = os.fspath(source), Path(source).expanduser()
    gguf = path.suffix.lower() == ".gguf"
    if not text.strip() or (os.path.isfile(path) and not gguf):
        what = "a file" if text.strip() else "empty"
        raise ValueError(f"{role}={text!r} is {what}: give a hub id, the folder of a model, or a .gguf file.")
    if os.path.exists(path):  # unlike path.exists(), not an error for a name that is too long
        return str(path), True
    if gguf or isinstance(source, os.PathLike) or text[0] in "./~\\" or text.count("/") > 1:
        raise FileNotFoundError(f"{role}={text!r}: there is no such {'file' if gguf else 'folder'}.")
    return text, False


def locate(role: str, source: Any, inside: dict, hub_options: dict) -> tuple[str, bool, dict]:
    """What `from_pretrained` needs, whether it is local, and what of `inside`; asks the hub for one file at once."""
    if isinstance(source, PreTrainedModel):
        return source.name_or_path, os.path.exists(source.name_or_path), {}
    name, local = where(role, source)
    if is_embedded(source):
        return name, local, {}
    file = inside.get("gguf_file")
    found = Path(name, inside.get("subfolder", ""), file or "")
    if not local:
        wanted = (found if file else found / "config.json").relative_to(name).as_posix()
        cache, revision = hub_options.get("cache_dir"), inside.get("revision")
        with _explained(role, name, local, wanted, cache):
            if not isinstance(try_to_load_from_cache(name, wanted, cache_dir=cache, revision=revision), str):
                _ask_hub()
            found = Path(hf_hub_download(name, wanted, revision=revision, **hub_options))
    elif not file and not found.is_file():
        if not (found / "config.json").is_file():
            gguf = sorted(path.name for path in found.glob("*.gguf"))
            advice = f"name its file, gguf_file={gguf[0]!r}" if gguf else "it is not a saved transformers model"
            raise FileNotFoundError(f"{role}={str(found)!r} has no config.json: {advice}.")
    if not file and not (local and found.is_file()):
        return name, local, inside
    if not found.is_file():
        raise FileNotFoundError(f"{role}={name!r} has no file {file!r}: gguf_file= names one inside it.")
    need_gguf()
    # whole, as transformers prefers a file of that name in the working directory
    file = os.path.abspath(found)
    return os.path.dirname(file), True, {"gguf_file": file}


@contextlib.contextmanager
def _explained(role: str, name: str, local: bool, what: str, cache: Any):
    """Turn the loaders' long errors into one or two sentences."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        close = [] if local else difflib.get_close_matches(name, EMBEDDED_NAMES, n=1, cutoff=0.7)
        named = f"{role}={name!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
        # transformers chains the hub's own error, whose name tells a missing network from a missing repository
        causes = {type(e).__name__ for e in (error, error.__cause__, error.__context__)}
        if not local and causes & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError"}:
            lost = f"{named}: {what} is not in the cache {cache or hub.HF_HUB_CACHE} and the hub cannot be reached"
            advice = f"run `hf download {name}` once while online, or give a local folder"
            raise OSError(f"{lost}: {advice}; load_pair() without arguments needs no download.") from error
        if "named model.safetensors" in reason:  # where pickles are all there is
            reason += " cdlearn reads safetensors only: load the model yourself and save it with save_pretrained"
        kind = ValueError if isinstance(error, (ValueError, TypeError, KeyError)) else OSError
        raise kind(f"{named}: {what} could not be loaded ({reason}).") from error


def tokenizer_of(role: str, source: Any, place: tuple, given: Any, how: dict) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was given or the source's own; None for a model object that knows of none."""
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    name, local, inside = place if given is None else (*where("tokenizer", given), {})
    if not name:
        return None
    if os.path.isfile(name):
        need_gguf()
        name, inside = os.path.dirname(name), {"gguf_file": os.path.abspath(name)}
    argument, what = (role, "its tokenizer (else pass tokenizer=)") if given is None else ("tokenizer", "it")
    try:
        with _explained(argument, inside.get("gguf_file", name), local, what, how.get("cache_dir")):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **how, **inside)
            if not tokenizer.get_vocab():
                raise OSError("no vocabulary")
            return tokenizer
    except (OSError, ValueError):
        if given is None and isinstance(source, PreTrainedModel):
            return None  # generate() will ask for one
        raise


def _ask_hub() -> None:
    """Raise ConnectionError at once where the hub does not answer: its own library would try for half a minute."""
    if hub.HF_HUB_OFFLINE:
        raise ConnectionError("offline mode")
    try:
        get_session().head(hub.ENDPOINT, timeout=10)
    except Exception as error:  # whichever HTTP library the hub's uses this year
        raise ConnectionError(str(error)) from error


def model_of(role: str, source: Any, place: tuple, *, device: Any, dtype: Any, quiet: bool, options: dict):
    """The model of a place on its device, in eval mode, and a note on its dtype; ValueError where it lacks weights."""
    (name, local, inside), embedded = place, is_embedded(source)
    options, gguf = options | inside, inside.get("gguf_file")
    named = f"{role}={(gguf or name)!r}"
    if device == "auto":
        # a million parameters gain nothing on a GPU, and the CPU gives everybody the same tokens
        device = torch.device("cpu") if embedded else pick_device()
    with contextlib.ExitStack() as after:
        after.enter_context(_explained(role, gguf or name, local, "model.safetensors", options.get("cache_dir")))
        if (quiet or embedded) and hf_logging.is_progress_bar_enabled():
            hf_logging.disable_progress_bar()
            after.callback(hf_logging.enable_progress_bar)
        known = Checkpoint(torch.float32) if embedded else read_checkpoint(name, options)
        note = [f"{known.quantised}, dequantised"] if known.quantised else []
        if dtype == "auto":
            dtype, why = pick_dtype(device, known)
            note += [] if embedded else [f"auto: {why}"]
        need, free = known.weights * dtype.itemsize, free_memory(device)
        if need > free and not {"device_map", "quantization_config"} & options.keys():
            much = f"{need / 1e9:.1f} GB for its weights in {plain(dtype)} and {free / 1e9:.1f} GB are free on {device}"
            warnings.warn(f"{named} needs {much}: take a smaller model or device_map='auto'.", stacklevel=4)
        if gguf:  # else some architectures fetch kernels from the hub
            options = {"quantization_config": transformers.GgufConfig(dequantize=True)} | options
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if lacking:
        random = f"{lacking[0]!r} ({len(lacking)} in all), which would be left random"
        raise ValueError(f"{named} lacks weights for {random}: it was saved from another kind of model.")
    if gguf:
        model.name_or_path = gguf
        if (spare := known.weights - sum(p.numel() for p in model.parameters())) > 0:
            warnings.warn(f"{named} holds {spare} weights that transformers does not read.", stacklevel=4)
    return (model if "device_map" in options else model.to(device)).eval(), "; ".join(note)
