"""What a checkpoint says before its weights are read: its dtype, its size, how a GGUF file is quantised."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import math
import platform
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
import transformers
from packaging.version import Version
from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.utils import cached_file


class Checkpoint(NamedTuple):
    """dtype: the checkpoint's own (None: not said); weights: how many (0: not said); quantised: how, "" if not."""

    dtype: torch.dtype | None = None
    weights: int = 0
    quantised: str = ""


def native(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device computes in this dtype itself, not by way of float32."""
    if dtype == torch.bfloat16 and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if dtype == torch.bfloat16 and device.type == "cpu":
        if platform.machine().lower() in ("aarch64", "arm64"):
            return torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return dtype == torch.float32 or dtype == {"cuda": torch.float16, "cpu": torch.float64}.get(device.type)


def pick_dtype(device: torch.device, known: Checkpoint) -> tuple[torch.dtype, str]:
    """The dtype that "auto" means for a checkpoint, and why."""
    if known.dtype is None:
        return torch.float32, "the checkpoint names no type"
    if native(device, known.dtype):
        return known.dtype, f"this {device.type} computes in it" if known.quantised else "the checkpoint's own"
    return torch.float32, f"this {device.type} does not compute in {plain(known.dtype)}"


def plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_checkpoint(name: str, options: dict) -> Checkpoint:
    """What the config, and the header or the index of the weights, say. options: those of `from_pretrained`."""
    if "gguf_file" in options:
        return _read_gguf(options["gguf_file"])
    names = ("revision", "subfolder", "cache_dir", "token", "local_files_only")
    hub = {key: options[key] for key in names if key in options}
    config, _ = PreTrainedConfig.get_config_dict(name, **hub)
    named = [part.get("dtype") or part.get("torch_dtype") for part in (config, config.get("text_config") or {})]
    own, count = next((getattr(torch, dtype, None) for dtype in named if isinstance(dtype, str)), None), 0
    find = functools.partial(cached_file, name, _raise_exceptions_for_missing_entries=False, **hub)
    variant = f".{options['variant']}" if options.get("variant") else ""
    with contextlib.suppress(Exception):  # damaged or missing weights: the loader will say so
        if file := find(f"model{variant}.safetensors"):
            with safe_open(file, "pt") as tensors:
                count = sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())
        elif own and (file := find(f"model.safetensors.index{variant}.json")):
            count = json.loads(Path(file).read_text(encoding="utf-8"))["metadata"]["total_size"] // own.itemsize
    return Checkpoint(own, count)


def need_gguf() -> None:
    """Raise ModuleNotFoundError where GGUF files cannot be read."""
    old = Version(transformers.__version__) < Version("5.23")  # whose tokenizers lose the BOS or other special tokens
    if old or not all(map(importlib.util.find_spec, ("gguf", "accelerate"))):
        needs = "gguf, accelerate and transformers>=5.23: pip install -e '.[gguf]' in a clone"
        raise ModuleNotFoundError(f"GGUF files need {needs}.")


def _read_gguf(file: str) -> Checkpoint:
    """What the header of a GGUF file says. Raises ValueError for what transformers would read wrongly."""
    gguf = importlib.import_module("gguf")
    header = gguf.GGUFReader(file)
    said = {key.partition(".")[2]: field.contents for key, field in header.fields.items()}
    counts: Counter = Counter()
    for tensor in header.tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    scaling = [said.get("rope.scaling.type", str)()] + [t.name for t in header.tensors if t.name.startswith("rope_")]
    if scaling[-1] not in ("", "none") and said["architecture"]() != "gpt-oss":
        raise ValueError(f"transformers drops its rope scaling, {scaling[-1]}: take the model's safetensors")
    floats = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    kind = max(counts, key=counts.get)
    if counts.keys() <= floats.keys():
        return Checkpoint(floats[kind], counts.total())
    return Checkpoint(torch.bfloat16, counts.total(), kind)  # which holds all that a quantised weight can say


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device (Linux: and within the cgroups' limits); infinity where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [math.inf]
    with contextlib.suppress(OSError, TypeError):  # no Linux
        if device.type == "cpu":
            free.append(int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024)
            own = PurePosixPath(re.search(r"^0::/(.*)", Path("/proc/self/cgroup").read_text(), re.M)[1])
            for folder in (Path("/sys/fs/cgroup") / group for group in (own, *own.parents)):
                with contextlib.suppress(OSError, ValueError):  # "max", or no such file: no limit here
                    left = int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
                    cached = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
                    free.append(left + int(cached[1]))
    return min(free)
