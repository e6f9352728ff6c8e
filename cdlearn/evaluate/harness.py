"""EleutherAI's lm-evaluation-harness on cdlearn's sources: `python -m cdlearn.evaluate.harness --model cdlearn ...`.

The harness keeps its command line, tasks, prompts, chat templates and metrics; a source scores and writes. Several
processes share the items: `torchrun --nproc_per_node 2 -m cdlearn.evaluate.harness ...`. Needs the extra `eval`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cdlearn.cli import options
from cdlearn.hf import as_causal_lm
from cdlearn.likelihood import MASKED
from cdlearn.loops.generate import generate
from cdlearn.loops.speculate import speculate
from cdlearn.pairs.loading import is_embedded
from cdlearn.pairs.pair import Pair, load_expert, load_pair
from cdlearn.sources import Source

try:
    from accelerate import Accelerator, InitProcessGroupKwargs
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    needs = 'cdlearn.evaluate.harness needs lm-evaluation-harness and accelerate: pip install "cdlearn[eval]"'
    if __name__ == "__main__":
        raise SystemExit(f"{needs} ({error}).") from None
    raise ModuleNotFoundError(f"{needs} ({error}).", name=error.name) from error

METHODS = tuple(method for method in options.METHODS if method != "sample")
NUMBERS = ("alpha", "beta", "strength", "tau_amateur", "top_k", "gamma", "layers")
_FOR_THE_HARNESS = ("add_bos_token", "prefix_token_id", "truncation", "think_end_token", "enable_thinking")
_FOR_THE_HARNESS += ("chat_template_args",)
_SCORES_AT_ONCE = 2**26  # 256 MB in float32: long texts are scored piece by piece, the cache carries on


@register_model("cdlearn")
class SourceLM(HFLM):
    """Any method of cdlearn as the harness's model type `cdlearn`; every argument can stand in `--model_args`.

    expert, amateur: hub ids, local folders, or the embedded pair (default). method: one of `METHODS`; alpha (None: no
    mask), beta or strength, tau_amateur, top_k, gamma as on the command line, layers as in `DoLa`. device, dtype and
    whatever else goes to `load_pair`. seed: of requests that sample; request number r of a process draws with seed + r.
    Log-likelihoods are those of the method's next-token distribution, a masked token counting `MASKED` as in DoLa's
    official evaluation. Raises ValueError for numbers that change nothing.
    """

    def __init__(
        self,
        expert: str | None = None,
        amateur: str | None = None,
        *,
        method: str = "contrastive",
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        max_length: int | None = None,
        seed: int = 0,
        **more: Any,
    ) -> None:
        numbers = {name: more.pop(name) for name in NUMBERS if name in more}
        check_numbers(method, numbers)
        ours = {name: more.pop(name) for name in _FOR_THE_HARNESS if name in more}
        device = "auto" if device == "cuda:0" else device  # the harness says cuda:0 where nobody said anything
        accelerator = _accelerator(expert, device)
        if accelerator is not None and device == "auto" and accelerator.device.type != "cpu":
            device = accelerator.device
        loading = {"device": device, "dtype": dtype, "progress": False, **more}
        if amateur is None and method not in options.NEEDS_AMATEUR:
            pair = load_expert(expert, **loading)
        else:
            pair = load_pair(expert, amateur, **loading)
        if pair.tokenizer is None:
            raise ValueError(f"expert={expert!r} has no tokenizer, and the harness speaks text: pass tokenizer=.")
        self.pair, self.method, self.gamma = pair, method, numbers.pop("gamma", 4)
        self.source, self.draft = source_of(method, pair, numbers)
        self._seed = seed
        with _quiet():
            ours |= {"batch_size": batch_size, "max_batch_size": max_batch_size, "max_length": max_length}
            super().__init__(as_causal_lm(self.source), backend="causal", tokenizer=pair.tokenizer, **ours)
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
        info = {"model_num_parameters": count, "model_dtype": self.pair.expert.dtype}
        return info | {"models": self.pair.names, "method": self.method, "settings": self.source.settings}

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What `--batch_size auto` tries: one pass, [B, T] ids. Returns [B, 1, V]; nothing here keeps [B, T, V]."""
        return self.source(inps, None, 1)

    def _loglikelihood_tokens(
        self, requests: list[tuple], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Requests (texts, context ids, continuation ids) -> the continuation's log-likelihood, and is it greedy's."""
        rows: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        for index, (texts, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"the continuation {(texts or ('', '...'))[1][:40]!r} has {len(continuation)} tokens: the harness "
                    f"can score 1 to max_length={self.max_length}."
                )
            *inputs, last = (context + continuation)[-(self.max_length + 1) :]
            # continuations that differ in their last token only share a row
            rows.setdefault(tuple(inputs), []).append((index, len(continuation), last))
        order = sorted(rows, key=lambda ids: (-len(ids), ids))  # neighbours share their beginning, and so the cache
        size = override_bs or self._batch_size_for(requests)
        answers: list[Any] = [None] * len(requests)
        bar = tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm or self.rank != 0, leave=False)
        with bar:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                for index, answer in self._score(batch, [rows[ids] for ids in batch]):
                    answers[index] = answer
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                    bar.update()
        return answers

    def _batch_size_for(self, requests: list[tuple]) -> int:
        if self.batch_size != "auto":
            return self.batch_size
        longest = max(range(len(requests)), key=lambda k: len(requests[k][1]) + len(requests[k][2]))
        self.batch_sizes[0] = self._detect_batch_size(requests, longest)
        return self.batch_sizes[0]

    def _score(
        self, batch: list[tuple[int, ...]], wanted: list[list[tuple[int, int, int]]]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Rows of ids, the longest first, with (index, tokens, last token) of their continuations -> the answers."""
        first = min(len(ids) - count for ids, asked in zip(batch, wanted) for _, count, _ in asked)
        # padded on the right: no real token sees it, and a beginning shared with the last batch keeps its columns
        ids = torch.tensor([[*row, *[0] * (len(batch[0]) + 1 - len(row))] for row in batch])  # (B, T + 1)
        step = max(1, _SCORES_AT_ONCE // (len(batch) * self.source.vocab_size))
        inner, best, ends = [], [], {}
        for start in range(first, ids.shape[1] - 1, step):
            stop = min(start + step, ids.shape[1] - 1)
            logp = log_probs(self.source(ids[:, :stop], None, stop - start))  # (B, n, V)
            targets = ids[:, start + 1 : stop + 1].to(logp.device)
            inner.append(logp.gather(-1, targets[..., None])[..., 0].cpu())
            best.append(logp.argmax(dim=-1).cpu())
            ends |= {r: logp[r, len(row) - 1 - start].cpu() for r, row in enumerate(batch) if start < len(row) <= stop}
        inner, hits = torch.cat(inner, dim=1), torch.cat(best, dim=1) == ids[:, first + 1 :]  # (B, T - first)
        for r, (row, asked) in enumerate(zip(batch, wanted)):
            for index, count, last in asked:
                span = slice(len(row) - count - first, len(row) - 1 - first)
                total = inner[r, span].double().sum() + ends[r][last]
                greedy = bool(hits[r, span].all()) and int(ends[r].argmax()) == last
                yield index, (float(total), greedy)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor | None = None, **asked: Any
    ) -> Tensor:
        """context: [B, T] padded on the left. Returns [B, T + new], padded on the right, as the harness expects."""
        settings = {"tokenizer": self.tokenizer, "max_new_tokens": max_length - context.shape[1], "seed": self._seed}
        settings |= {"stop": [text for text in stop if text], "trace": False, "progress": False}
        settings |= {"attention_mask": attention_mask, **read_law(asked)}
        self._seed += len(context)
        if self.draft is None:
            made = generate(self.source, context, **settings)
        else:
            made = speculate(self.source, self.draft, context, gamma=self.gamma, **settings)
        made = made if isinstance(made, list) else [made]
        if any(generation.finish_reason == "interrupted" for generation in made):
            raise KeyboardInterrupt
        new = [torch.tensor(generation.token_ids, dtype=torch.long) for generation in made]
        new = torch.nn.utils.rnn.pad_sequence(new, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return torch.cat([context.cpu(), new], dim=1)


def log_probs(scores: Tensor) -> Tensor:
    """Scores [..., V], -inf where masked -> log-probabilities in nats, at least `MASKED`."""
    return torch.log_softmax(scores, dim=-1).clamp(min=MASKED)


def check_numbers(method: str, numbers: dict[str, Any]) -> None:
    """Refuse, before any model is loaded, a method that is unknown and numbers that would change nothing."""
    if method not in METHODS:
        hint = " To sample, take another method and --gen_kwargs do_sample=True,temperature=1.0." * (method == "sample")
        raise ValueError(f"method is {method!r}: pass one of {', '.join(METHODS)}.{hint}")
    owners = options.FLAGS_OF | {"layers": ("dola",)}
    for name, value in numbers.items():
        if method not in owners[name]:
            raise ValueError(
                f"{name}={value!r} changes nothing with method={method}; it belongs to {', '.join(owners[name])}."
            )
    if "beta" in numbers and numbers.keys() & {"strength", "tau_amateur"}:
        raise ValueError("beta was given together with strength or tau_amateur: they are two forms, choose one.")


def source_of(method: str, pair: Pair, numbers: dict[str, Any]) -> tuple[Source, Source | None]:
    """The source of a method, and its draft if it has one."""
    given = dict.fromkeys(options.FLAGS_OF) | numbers
    source, draft, _ = options.source_of(method, pair, argparse.Namespace(**given))
    # two things that the command line of cdlearn cannot say
    changes = {"alpha": None} if numbers.get("alpha", 0) is None else {}
    if "layers" in numbers:
        changes["layers"] = [numbers["layers"]] if isinstance(numbers["layers"], int) else numbers["layers"]
    return source.changed(**changes) if changes else source, draft


def read_law(asked: dict[str, Any]) -> dict[str, Any]:
    """The harness's generation arguments as those of `generate`. Raises ValueError for one that it does not know."""
    law = {name: asked[name] for name in ("top_k", "top_p", "repetition_penalty") if asked.get(name) is not None}
    law["temperature"] = asked.get("temperature", 1.0) if asked.get("do_sample") else 0.0
    known = {"do_sample", "temperature", "use_cache", *law}
    for name, value in asked.items():
        if name not in known and value is not None and (name, value) != ("num_beams", 1):
            raise ValueError(
                f"the generation argument {name}={value!r} is none of cdlearn.generate: a task or --gen_kwargs may set "
                "do_sample, temperature, top_k, top_p, repetition_penalty, until and max_gen_toks."
            )
    return law


def _accelerator(expert: str | None, device: Any) -> Accelerator | None:
    """This process's part in a run under torchrun or `accelerate launch`; None where it is alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    on_cpu = expert is None or is_embedded(expert) or str(device) == "cpu" or not torch.cuda.is_available()
    # a rank may wait long for a slower one
    return Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(weeks=1))])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the harness's warnings that a model object cannot be run in several processes: this one can."""
    logger = logging.getLogger(HFLM.__module__)

    def fits(record: logging.LogRecord) -> bool:
        return "`pretrained`" not in record.getMessage()

    logger.addFilter(fits)
    try:
        yield
    finally:
        logger.removeFilter(fits)


def main(argv: list[str] | None = None) -> int:
    """The harness's own command line, with the model type `cdlearn`."""
    before = sys.argv
    sys.argv = [before[0] if before else "cdlearn.evaluate.harness", *(before[1:] if argv is None else argv)]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
