"""Times on a machine that is never quiet: a loop's step and, right behind it, the bare forwards of the same token."""

from __future__ import annotations

import contextlib
import platform
import time
from typing import Any

import torch
import transformers
from transformers import DynamicCache, PreTrainedModel, StoppingCriteria

from cdlearn.sources import Source


class Forwards:
    """Bare one-token forward passes of the models, each with its own cache: what a loop is held against."""

    def __init__(self, models: dict[str, PreTrainedModel]):
        self.models = models
        self.caches: dict[str, Any] = {}
        self.times: dict[str, list[float]] = {name: [] for name in models}

    @torch.no_grad()
    def step(self, ids: torch.Tensor) -> None:
        """Feed what is new of ids [B, T] to every model; time it where it is one token."""
        for name, model in self.models.items():
            if name not in self.caches:
                self.caches[name] = DynamicCache(config=model.config)
            seen = self.caches[name].get_seq_length()
            new = ids[:, seen:].to(model.device)
            positions = torch.arange(seen, ids.shape[1], device=model.device)[None]
            start = now(model.device)
            model(input_ids=new, past_key_values=self.caches[name], position_ids=positions, logits_to_keep=1)
            spent = now(model.device) - start
            if new.shape[1] == 1:
                self.times[name].append(spent)


class Stopwatch(Source):
    """A source around a source: its time and the loop's time count, the bare forwards in between do not."""

    def __init__(self, inner: Source, forwards: Forwards):
        super().__init__()
        self.inner, self.forwards, self.left = inner, forwards, None
        self.times: list[float] = []
        self.vocab_size, self.device = inner.vocab_size, inner.device
        self.max_positions, self.rewindable, self.settings = inner.max_positions, inner.rewindable, inner.settings
        self.eos_token_ids = ()  # every text runs to its full length

    def __call__(self, ids, mask=None, n=1):
        scores = self.inner(ids, mask, n)
        self.parts, self.details = self.inner.parts, self.inner.details
        entered = now(self.device)
        if self.left is not None:
            self.times.append(entered - self.left)  # one step: the loop after the last scores, and these scores
        self.forwards.step(ids)
        self.left = now(self.device)
        return scores


class Lap(StoppingCriteria):
    """The same stopwatch for the generate() of transformers, which calls this once a step and never stops for it."""

    def __init__(self, forwards: Forwards, device: torch.device):
        self.forwards, self.device, self.left = forwards, device, None
        self.times: list[float] = []

    def __call__(self, input_ids, scores, **kwargs):
        entered = now(self.device)
        if self.left is not None:
            self.times.append(entered - self.left)
        self.forwards.step(input_ids)
        self.left = now(self.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def now(device: torch.device) -> float:
    """Return the time after everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    place = {"device": f"{device.type} ({name})", "threads": threads}
    return place | versions | {"transformers": transformers.__version__}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> str:
    """The most memory used so far: of the GPU's allocator, or of the whole process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    scale = 2**20 if platform.system() == "Darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale:.0f} MiB, the whole process"


@contextlib.contextmanager
def use_threads(count: int | None):
    """Use `count` threads for a while: the process's own number comes back afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
