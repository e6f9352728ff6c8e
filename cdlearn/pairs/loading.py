"""Where models come from: devices, folders, the hub, and what to say when something is missing."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub
from huggingface_hub import get_session, hf_hub_download, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from cdlearn.checks import watched

# transformers imports lazily: pay for the classes of the embedded pair now, so that load_pair() is quick
importlib.import_module("transformers.models.llama.modeling_llama")

EMBEDDED = Path(__file__).parent.parent / "toyworld" / "pair"
EMBEDDED_NAMES = ("expert", "amateur", "early")


def pick_device() -> torch.device:
    """The device that "auto" means for models that are not embedded: CUDA, else MPS, else CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """The dtype that "auto" means: bfloat16 on CUDA where supported, else float32."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def is_embedded(source: Any) -> bool:
    return isinstance(source, str) and source in EMBEDDED_NAMES


def label(source: Any) -> str:
    """The name of a source in messages: never a long absolute path."""
    if isinstance(source, PreTrainedModel):
        return os.path.basename(os.path.normpath(source.name_or_path)) if source.name_or_path else type(source).__name__
    if is_embedded(source):
        return f"embedded {source}"
    return str(source) if not os.path.isdir(source) else os.path.basename(os.path.abspath(source))


def for_each_role(value: Any, roles: dict, argument: str) -> dict:
    """One device (or dtype) for every role, or one each; "auto" stays a word."""
    values = list(value) if isinstance(value, (tuple, list)) else [value] * len(roles)
    if len(values) != len(roles):
        raise ValueError(f"{argument}={value!r} must be one value, or one each for {' and '.join(roles)}.")
    parse = _parse_device if argument == "device" else _parse_dtype
    return {role: v if isinstance(v, str) and v == "auto" else parse(v) for role, v in zip(roles, values)}


def _parse_device(value: Any) -> torch.device:
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f'device={value!r} must be "auto", a string such as "cuda:0", or a torch.device.')
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        reason = "no such kind of device" if reason.startswith("Expected one of") else reason
        raise ValueError(f'device={str(value)!r} cannot be used here ({reason}): try "auto" or "cpu".') from error
    return device


def _parse_dtype(value: Any) -> torch.dtype:
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        kind = ValueError if isinstance(value, (str, torch.dtype)) else TypeError
        raise kind(f'dtype={value!r} must be "auto", "float32", "bfloat16", "float16" or another floating torch dtype.')
    return dtype


def where(role: str, source: Any) -> tuple[str, bool]:
    """What `from_pretrained` needs, and whether it is a local folder; complains early about what it is not."""
    if is_embedded(source):
        if not (EMBEDDED / source / "config.json").is_file():
            raise FileNotFoundError(f"the embedded {source} is missing from {EMBEDDED}: install cdlearn again.")
        return str(EMBEDDED / source), True
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise TypeError(f"{role} must be a hub id, a local folder or a transformers object, got {kind}.")
    text, path = os.fspath(source), Path(source).expanduser()
    if not text.strip() or path.is_file():
        what = "a file" if text.strip() else "empty"
        raise ValueError(f"{role}={text!r} is {what}: give a hub id, or a folder that holds config.json and weights.")
    if path.is_dir():
        if role != "tokenizer":
            _check_folder(f"{role}={str(path)!r}", path)
        return str(path), True
    if isinstance(source, os.PathLike) or text[0] in "./~\\" or text.count("/") > 1:
        raise FileNotFoundError(f"{role}={text!r}: there is no such folder.")
    return text, False


def _check_folder(named: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{named} has no config.json: it is not a saved transformers model.")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
    if not pickles:
        raise FileNotFoundError(f"{named} has no weights: a *.safetensors file is expected there.")
    raise OSError(
        f"{named} holds only {pickles[0]}, a pickle, and cdlearn loads safetensors only: load the model yourself and "
        "save it again with model.save_pretrained(folder)."
    )


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
            raise OSError(
                f"{named}: {what} is not in the cache {cache or hub.HF_HUB_CACHE} and the hub cannot be reached. Fetch "
                f"it once while online with `hf download {name}`, or give a local folder; load_pair() without "
                "arguments needs no download."
            ) from error
        if "Unrecognized configuration class" in reason:
            raise ValueError(f"{named} is not a causal language model ({reason[:120]}).") from error
        kind = ValueError if isinstance(error, (ValueError, TypeError, KeyError)) else OSError
        raise kind(f"{named}: {what} could not be loaded ({reason}).") from error


def tokenizer_of(role: str, source: Any, given: Any, hub_options: dict) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was given or the source's own; None for a model object that knows of none."""
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    from_object = given is None and isinstance(source, PreTrainedModel)
    argument = role if given is None else "tokenizer"
    if from_object:
        name, local = source.name_or_path, os.path.isdir(source.name_or_path)
        if not name:
            return None
    else:
        name, local = where(argument, source if given is None else given)
    cache = hub_options.get("cache_dir")
    if not local and given is None and not from_object:
        with _explained(argument, name, local, "config.json", cache):  # one file tells at once whether the hub answers
            if not isinstance(try_to_load_from_cache(name, "config.json", cache_dir=cache), str):
                _ask_hub()
            hf_hub_download(name, "config.json", **hub_options)
    try:
        with _explained(argument, name, local, "tokenizer.json", cache):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub_options)
            if not tokenizer.get_vocab():
                raise ValueError("no vocabulary")
            return tokenizer
    except (OSError, ValueError) as error:
        if from_object:
            return None  # generate() will ask for one
        if local and given is None and not [*Path(name).glob("*token*"), *Path(name).glob("vocab*")]:
            raise FileNotFoundError(f"{role}={name!r} has no tokenizer files: pass tokenizer=.") from error
        raise


def _ask_hub() -> None:
    """Raise ConnectionError at once where the hub does not answer: its own library would try for half a minute."""
    if hub.HF_HUB_OFFLINE:
        raise ConnectionError("offline mode")
    try:
        get_session().head(hub.ENDPOINT, timeout=10)
    except Exception as error:  # whichever HTTP library the hub's uses this year
        raise ConnectionError(str(error)) from error


def model_of(role: str, source: Any, device: Any, dtype: Any, progress: bool | None, options: dict) -> PreTrainedModel:
    """The model of a hub id or folder, on its device and in eval mode; ValueError where it lacks weights."""
    name, local = where(role, source)
    if device == "auto":
        # a million parameters gain nothing on a GPU, and the CPU gives everybody the same tokens
        device = torch.device("cpu") if is_embedded(source) else pick_device()
    if dtype == "auto":
        dtype = pick_dtype(device)
    quiet = is_embedded(source) or not (watched() if progress is None else progress)
    with _explained(role, name, local, "model.safetensors", options.get("cache_dir")), _bars_hidden(quiet):
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if lacking:
        raise ValueError(
            f"{role}={name!r} lacks weights for {lacking[0]!r} ({len(lacking)} in all), which would be left random: "
            "it was not saved from a causal language model of this shape."
        )
    return (model if "device_map" in options else model.to(device)).eval()


@contextlib.contextmanager
def _bars_hidden(hide: bool):
    """Hide the loading bars of transformers for a moment, and put them back as they were."""
    hide = hide and hf_logging.is_progress_bar_enabled()
    if hide:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            hf_logging.enable_progress_bar()
