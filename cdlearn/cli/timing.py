"""The stopwatch of `cdlearn bench`, for machines that are never quiet: a loop's step, then the bare forwards."""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StoppingCriteria
from transformers.utils import logging

from cdlearn.sources import Source
from cdlearn.sources.combine import compose

CHECKED = 5  # tokens of the pass that `bare_passes` times as a check


class Forwards:
    """Bare one-token forward passes of models, each with its own cache: what the steps of a loop are held against.

    times: the seconds of each model's passes. laps: the seconds of the loop's steps. The prompt is no step: prompt has
    the seconds of each model's pass over it, and first those of the loop, to the scores of its first token.
    """

    def __init__(self, models: dict[str, PreTrainedModel], device: torch.device | None = None) -> None:
        self.models, self.device = models, device or torch.device("cpu")
        self.caches = {name: DynamicCache(config=model.config) for name, model in models.items()}
        self.times: dict[str, list[float]] = {name: [] for name in models}
        self.prompt: dict[str, float] = {}
        self.laps: list[float] = []
        self.first: float | None = None
        self._left = now(self.device)

    @torch.no_grad()
    def lap(self, ids: Tensor) -> None:
        """End a step of the loop whose tokens are ids [B, T]; feed what is new in them to the models, timing it."""
        spent = now(self.device) - self._left
        if self.first is None:
            self.first = spent
        else:
            self.laps.append(spent)
        for name, model in self.models.items():
            seen = self.caches[name].get_seq_length()
            new = ids[:, seen:].to(model.device)
            positions = torch.arange(seen, ids.shape[1], device=model.device)[None]
            start = now(model.device)
            model(input_ids=new, past_key_values=self.caches[name], position_ids=positions, logits_to_keep=1)
            if seen:
                self.times[name].append(now(model.device) - start)
            else:
                self.prompt[name] = now(model.device) - start
        self._left = now(self.device)


class Stopwatch(Source):
    """A source around a source: its time and the loop's time count, the bare forwards in between do not."""

    inner = ("source",)

    def __init__(self, source: Source, forwards: Forwards) -> None:
        super().__init__()
        self.source, self.forwards, self.settings = source, forwards, source.settings
        compose(self, [source])
        self.eos_token_ids = ()  # every text runs to its full length

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        scores = self.source.scores(ids, mask, n)
        self.parts, self.details = self.source.parts, self.source.details
        self.forwards.lap(ids)
        return scores


class Lap(StoppingCriteria):
    """The same stopwatch for the generate() of transformers, which calls this once per step and never stops for it."""

    def __init__(self, forwards: Forwards) -> None:
        self.forwards = forwards

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.forwards.lap(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def now(device: torch.device) -> float:
    """Return the time after everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@torch.no_grad()
def bare_passes(models: dict[str, PreTrainedModel], ids: Tensor) -> dict[str, float]:
    """Median seconds of bare passes after a context: one token of each model, and the expert's check of `CHECKED`."""
    costs = {}
    for name, width in (*((name, 1) for name in models), ("check", CHECKED)):
        model = models.get(name, models["expert"])
        cache, times = DynamicCache(config=model.config), []
        model(input_ids=ids.to(model.device), past_key_values=cache)
        for _ in range(15):
            start = now(model.device)
            model(input_ids=ids[:, :1].expand(-1, width).to(model.device), past_key_values=cache)
            times.append(now(model.device) - start)
            cache.crop(-width)
        costs[name] = statistics.median(times)
    return costs


def greedy(model: PreTrainedModel, ids: Tensor, steps: int, **more: Any) -> None:
    """So many greedy tokens by the generate() of transformers."""
    never = model.config.get_text_config().vocab_size  # an EOS id that no model can emit
    numbers = GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=never, pad_token_id=0)
    ids, before = ids.to(model.device), logging.get_verbosity()
    logging.set_verbosity_error()  # assisted generation warns of its own inner calls
    try:
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=numbers, **more)
    finally:
        logging.set_verbosity(before)


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    known = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in known if line.startswith("model name")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (names or [platform.machine()])[0]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    place = {"device": f"{device.type} ({name})", "threads": torch.get_num_threads()} | versions
    return place | {"peak memory": f"{peak / 2**20:.0f} MiB" if (peak := _peak(device)) else "unknown"}


def _peak(device: torch.device) -> int:
    """The most bytes so far: on CUDA what torch had allocated, else the whole process; 0 where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
