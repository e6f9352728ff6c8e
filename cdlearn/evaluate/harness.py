"""EleutherAI's lm-evaluation-harness on cdlearn's sources: `python -m cdlearn.harness --model cdlearn ...`.

The harness keeps its command line, tasks, prompts, chat templates and metrics; a method scores and writes. Several
processes share the items: `torchrun --nproc_per_node 2 -m cdlearn.harness ...`. Needs the extra `eval`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdlearn.hf import as_causal_lm
from cdlearn.methods import DRAW, METHODS, OPTIONS, SCORED, Models, build, check, parse
from cdlearn.metrics import MASKED
from cdlearn.pairs.loading import is_embedded
from cdlearn.pairs.pair import load_expert, load_pair

try:
    from accelerate import Accelerator, InitProcessGroupKwargs
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    needs = 'cdlearn.harness needs lm-evaluation-harness and accelerate: pip install -e ".[eval]" in a clone'
    raise ModuleNotFoundError(f"{needs} ({error}).", name=error.name) from error

_THEIRS = "add_bos_token prefix_token_id truncation think_end_token enable_thinking chat_template_args".split()


@register_model("cdlearn")
class SourceLM(HFLM):
    """Any method of `cdlearn.methods` as the harness's model type `cdlearn`; `--model_args` takes every argument.

    expert, amateur: hub ids, local folders, or the embedded pair (default). method: a name of `METHODS`, and its
    numbers by their names there: alpha (None: no mask), beta or strength, amateur_temperature, top_k, layers, gamma.
    device, dtype and whatever else goes to `load_pair`. seed: of requests that sample; request number r of a process
    draws with seed + r. Log-likelihoods are those of the method's next-token distribution, a masked token counting
    `MASKED` as in DoLa's official evaluation. Raises ValueError for numbers that change nothing.
    """

    def __init__(
        self, expert: str | None = None, amateur: str | None = None, *, method: str = "contrastive",
        device: str = "auto", dtype: str = "auto", batch_size: int | str = 1, max_batch_size: int = 64,
        max_length: int | None = None, seed: int = 0, **more: Any,
    ) -> None:  # fmt: skip
        numbers = {name: more.pop(name) for name in OPTIONS if name in more}
        method, spelled = parse(method)
        numbers = spelled | numbers
        for name in [name for name in (*DRAW, *SCORED) if name in numbers] + ["sample"] * (method == "sample"):
            advice = "to sample take another method and --gen_kwargs do_sample=True,temperature=1.0"
            raise ValueError(f"{name} is not for --model_args: choices are scored as textbooks do; {advice}.")
        check(method, numbers)
        ours = {name: more.pop(name) for name in _THEIRS if name in more}
        device = "auto" if device == "cuda:0" else device  # the harness says cuda:0 where nobody said anything
        accelerator = _accelerator(expert, device)
        if accelerator is not None and device == "auto" and accelerator.device.type != "cpu":
            device = accelerator.device
        loading = {"device": device, "dtype": dtype, "progress": False, **more}
        alone = amateur is None and "amateur" not in METHODS[method].needs
        self.pair = load_expert(expert, **loading) if alone else load_pair(expert, amateur, **loading)
        if self.pair.tokenizer is None:
            raise ValueError(f"expert={expert!r} has no tokenizer, and the harness speaks text: pass tokenizer=.")
        self._starts: dict[tuple[int, ...], int] = {}
        self._longest = 1
        self.decoder, self._seed = build(Models(self.pair), method, numbers), seed
        ours |= {"batch_size": batch_size, "max_batch_size": max_batch_size, "max_length": max_length}
        super().__init__(as_causal_lm(self.decoder.source), backend="causal", tokenizer=self.pair.tokenizer, **ours)
        if accelerator is not None:  # a model object makes the harness believe in one process
            self.accelerator, self._device = accelerator, accelerator.device
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    @property
    def max_gen_toks(self) -> int:
        """For tasks that do not say; a small context must leave room for the prompt."""
        return min(256, self.max_length // 2)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: the models and the source's numbers."""
        models = {id(model): model for model in (self.pair.expert, self.pair.amateur) if model is not None}
        count = sum(parameter.numel() for model in models.values() for parameter in model.parameters())
        info = {"model_num_parameters": count, "model_dtype": self.pair.expert.dtype, "models": self.pair.names}
        return info | {"method": self.decoder.name, "settings": self.decoder.source.settings}

    def _loglikelihood_tokens(self, requests: list[tuple], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """Requests (texts, context ids, continuation ids); notes for `_model_call` where each continuation begins."""
        self._starts = {}
        self._longest = max((len(new) for _, _, new in requests), default=0)
        for _, context, new in requests:
            row = (context + new)[-(self.max_length + 1) : -1]
            self._starts[_unpadded(row)] = min(len(row) - len(new), self._starts.get(_unpadded(row), len(row)))
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T] ids, padded on the right -> [B, n, V]: log-probabilities in nats, at least `MASKED`, of n columns.

        They are the last n, from the batch's first continuation on; the harness counts columns from the end. A row that
        was never asked for comes from `--batch_size auto`, which tries the longest continuation.
        """
        rest = max(0, inps.shape[1] - self._longest)
        n = inps.shape[1] - min(self._starts.get(_unpadded(row), rest) for row in inps.tolist())
        return self.decoder.source(inps, None, n).log_softmax(dim=-1).clamp_(min=MASKED).to(self.device)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor | None = None, **asked: Any
    ) -> Tensor:
        """context: [B, T] padded on the left. Returns [B, T + new], padded on the right, as the harness expects."""
        settings = {"tokenizer": self.tokenizer, "max_new_tokens": max_length - context.shape[1], "seed": self._seed}
        settings |= {"stop": [text for text in stop if text], "trace": False, "progress": False}
        self._seed += len(context)
        decoder = replace(self.decoder, draw=self.decoder.draw | _draw(asked))
        made = decoder(context, attention_mask=attention_mask, **settings)
        made = made if isinstance(made, list) else [made]
        if any(generation.finish_reason == "interrupted" for generation in made):
            raise KeyboardInterrupt
        new = [torch.tensor(generation.token_ids, dtype=torch.long) for generation in made]
        new = torch.nn.utils.rnn.pad_sequence(new, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return torch.cat([context.cpu(), new], dim=1)


def _unpadded(row: list[int]) -> tuple[int, ...]:
    """A row without the zeros at its end, which the harness pads with."""
    return tuple(np.trim_zeros(row, trim="b"))


def _draw(asked: dict[str, Any]) -> dict[str, Any]:
    """The harness's generation arguments as those of `generate`. Raises ValueError for one that it does not know."""
    draw = {name: asked[name] for name in ("top_k", *DRAW) if asked.get(name) is not None}
    draw["temperature"] = asked.get("temperature", 1.0) if asked.get("do_sample") else 0.0
    known = {"do_sample", "temperature", "use_cache", *draw}
    for name, value in asked.items():
        if name not in known and value is not None and (name, value) != ("num_beams", 1):
            advice = f"a task or --gen_kwargs may set do_sample, top_k, {', '.join(DRAW)}, until and max_gen_toks"
            raise ValueError(f"the generation argument {name}={value!r} is none of cdlearn.generate: {advice}.")
    return draw


def _accelerator(expert: str | None, device: Any) -> Accelerator | None:
    """This process's part in a run under torchrun or `accelerate launch`; None where it is alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    on_cpu = expert is None or is_embedded(expert) or str(device) == "cpu" or not torch.cuda.is_available()
    # a rank may wait long for a slower one
    return Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(weeks=1))])


def main(argv: list[str] | None = None) -> int:
    """The harness's own command line, with the model type `cdlearn`."""
    before = sys.argv
    sys.argv = [before[0] if before else "cdlearn.harness", *(before[1:] if argv is None else argv)]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # its threads must not outlive the interpreter
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
