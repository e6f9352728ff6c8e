"""What a checkpoint says before its weights are read: its dtype, its size, how a GGUF file is quantised."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import platform
import re
import struct
import threading
import warnings
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.utils import cached_file

_SAFETENSORS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_GGUF = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}  # every other type of tensor is quantised
_ONE_AT_A_TIME = threading.Lock()


class Checkpoint(NamedTuple):
    """dtype: the checkpoint's own (None: not said); weights: how many (None: not said); quantised: how, "" if not."""

    dtype: torch.dtype | None
    weights: int | None
    quantised: str = ""


def native(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device computes in this dtype itself, not by way of float32."""
    if device.type == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and dtype == torch.bfloat16:
        if platform.machine().lower() in ("aarch64", "arm64"):
            return torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return dtype == torch.float32 or (device.type == "cpu" and dtype == torch.float64)


def pick_dtype(device: torch.device, checkpoint: Checkpoint) -> tuple[torch.dtype, str]:
    """The dtype that "auto" means for a checkpoint, and why."""
    own = checkpoint.dtype
    if own is None:
        return torch.float32, "the checkpoint names no type"
    if native(device, own):
        return own, f"this {device.type} computes in it" if checkpoint.quantised else "the checkpoint's own"
    return torch.float32, f"this {device.type} does not compute in {plain(own)}"


def plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_checkpoint(name: str, options: dict) -> Checkpoint:
    """What the config, and the header or the index of the weights, say. options: those of `cached_file`."""
    config, _ = PreTrainedConfig.get_config_dict(name, **options)
    named = [part.get("dtype") or part.get("torch_dtype") for part in (config, config.get("text_config") or {})]
    own = next((getattr(torch, dtype, None) for dtype in named if isinstance(dtype, str)), None)
    optional = options | {"_raise_exceptions_for_missing_entries": False}
    with contextlib.suppress(
        ValueError, KeyError, TypeError, struct.error, MemoryError
    ):  # damaged: the loader will say so
        if file := cached_file(name, "model.safetensors", **optional):
            with open(file, "rb") as stream:
                header = json.loads(stream.read(*struct.unpack("<Q", stream.read(8))))
            counts: Counter = Counter()
            for tensor in (tensor for key, tensor in header.items() if key != "__metadata__"):
                counts[tensor["dtype"]] += math.prod(tensor["shape"])
            return Checkpoint(own or _SAFETENSORS.get(max(counts, key=counts.get, default="")), counts.total())
        if own and (file := cached_file(name, "model.safetensors.index.json", **optional)):
            size = json.loads(Path(file).read_text(encoding="utf-8"))["metadata"]["total_size"]
            return Checkpoint(own, size // own.itemsize)
    return Checkpoint(own, None)


def read_gguf(file: str) -> Checkpoint:
    """What the header of a GGUF file says. Raises ValueError for what transformers would read wrongly."""
    with open(file, "rb") as stream:

        def read(code: str) -> Any:
            return struct.unpack("<" + code, stream.read(struct.calcsize(code)))[0]

        def value(kind: int) -> Any:
            if kind == 9:
                inner, count = read("I"), read("Q")
                return [value(inner) for _ in range(count)]
            return stream.read(read("Q")).decode("utf-8", "replace") if kind == 8 else read("BbHhIif?  Qqd"[kind])

        try:
            if stream.read(4) != b"GGUF" or read("I") not in (2, 3):
                raise ValueError("it is no GGUF file of version 2 or 3")
            tensors, fields = read("Q"), read("Q")
            meta = {value(8): value(read("I")) for _ in range(fields)}
            counts: Counter = Counter()
            for _ in range(tensors):
                name, shape = value(8), [read("Q") for _ in range(read("I"))]
                if name.startswith("rope_"):
                    meta["rope.scaling.type"] = name
                counts[read("I")] += math.prod(shape)
                read("Q")
        except (struct.error, IndexError, MemoryError, OverflowError) as error:
            raise ValueError("its header is damaged") from error
    scaling = [v for key, v in meta.items() if key.endswith("rope.scaling.type") and v != "none"]
    if scaling and meta.get("general.architecture") != "gpt-oss":
        raise ValueError(f"its positions are scaled ({scaling[0]}), which is lost on this way: take its safetensors")
    if set(counts) <= set(_GGUF):
        return Checkpoint(_GGUF[max(counts, key=counts.get)], counts.total())
    gguf = importlib.import_module("gguf")
    kind = gguf.GGMLQuantizationType(max(counts.keys() - _GGUF.keys(), key=counts.get)).name
    with contextlib.suppress(KeyError, ValueError):
        kind = gguf.LlamaFileType(meta["general.file_type"]).name.removeprefix("MOSTLY_")
    return Checkpoint(torch.bfloat16, counts.total(), kind)  # which holds all that a quantised weight can say


@contextlib.contextmanager
def gguf_reading(quiet: bool):
    """Let transformers parse a GGUF file once, not once per use, and name its tensors once, not once per module."""
    gguf = importlib.import_module("gguf")
    reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    new = {(gguf, name): functools.cache(getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")}
    new[reader, "tqdm"] = functools.partial(reader.tqdm, disable=quiet)
    with _ONE_AT_A_TIME:
        old = {(module, name): getattr(module, name) for module, name in new}
        try:
            for (module, name), thing in new.items():
                setattr(module, name, thing)
            yield
        finally:
            for (module, name), thing in old.items():
                setattr(module, name, thing)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device (Linux: also within the cgroup's limit); None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        free = [int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024]
        own = re.search(r"^0::/(.*)", Path("/proc/self/cgroup").read_text(), re.M)
        groups = [PurePosixPath(own[1]), *PurePosixPath(own[1]).parents] if own else []
        for folder in (Path("/sys/fs/cgroup") / group for group in groups):
            with contextlib.suppress(OSError, ValueError):  # "max", or no such file: no limit here
                limit = int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
                cached = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
                free.append(limit + int(cached[1]))
    except (OSError, TypeError):
        return None
    return min(free)


def warn_of_memory(named: str, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Warn where the weights take more than what is free."""
    need, free = (checkpoint.weights or 0) * dtype.itemsize, free_memory(device)
    if free is not None and need > free:
        warnings.warn(
            f"{named} needs {need / 1e9:.1f} GB for its weights in {plain(dtype)}, and {free / 1e9:.1f} GB are free on "
            f"{device}: take a smaller model or a smaller dtype, or spread it with device_map='auto'.",
            stacklevel=6,
        )
