"""The stopwatch of `cdlearn bench`, for machines that are never quiet: a loop's step, then the bare forwards."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StoppingCriteria

from cdlearn.sources import Source
from cdlearn.sources.combine import compose


class Forwards:
    """Bare one-token forward passes of models, each with its own cache: what the steps of a loop are held against.

    times: the seconds of each model's passes. laps: the seconds of the loop's steps.
    """

    def __init__(self, models: dict[str, PreTrainedModel], device: torch.device | None = None) -> None:
        self.models, self.device = models, device or torch.device("cpu")
        self.caches = {name: DynamicCache(config=model.config) for name, model in models.items()}
        self.times: dict[str, list[float]] = {name: [] for name in models}
        self.laps: list[float] = []
        self._left: float | None = None

    @torch.no_grad()
    def lap(self, ids: Tensor) -> None:
        """End a step of the loop whose tokens are ids [B, T]; feed what is new in them to the models, timing it."""
        entered = now(self.device)
        if self._left is not None:
            self.laps.append(entered - self._left)
        for name, model in self.models.items():
            seen = self.caches[name].get_seq_length()
            new = ids[:, seen:].to(model.device)
            positions = torch.arange(seen, ids.shape[1], device=model.device)[None]
            start = now(model.device)
            model(input_ids=new, past_key_values=self.caches[name], position_ids=positions, logits_to_keep=1)
            if seen:  # the prompt is no step
                self.times[name].append(now(model.device) - start)
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


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    known = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in known if line.startswith("model name")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (names or [platform.machine()])[0]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": f"{device.type} ({name})", "threads": torch.get_num_threads()} | versions
