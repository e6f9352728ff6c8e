"""Load an expert and an amateur that speak the same tokens: embedded, from the hub, from folders, or as objects."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cdlearn.pairs.loading import for_each_role, label, model_of, tokenizer_of, where

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "subfolder", "force_download")


@dataclass(eq=False, repr=False)
class Pair:
    """An expert, an amateur and the tokenizer they share.

    `vocab_size` is the number of token ids both can score: padding rows beyond it are trimmed.
    `amateur` is None where only one model was asked for (`load_expert`).
    """

    expert: PreTrainedModel
    amateur: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    vocab_size: int
    names: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = [f"{role}={self.names.get(role, '?')} ({_short(model)})" for role, model in self._models()]
        return f"Pair({', '.join(parts)}, vocab_size={self.vocab_size})"

    def _models(self) -> list[tuple[str, PreTrainedModel]]:
        both = (("expert", self.expert), ("amateur", self.amateur))
        return [(role, model) for role, model in both if model is not None]

    def describe(self) -> str:
        """Return a few lines of text: both models with their size, type and place, and the tokenizer."""
        lines = []
        for role, model in self._models():
            config = model.config.get_text_config()
            where = f"{str(model.dtype).removeprefix('torch.')} on {model.device}"
            limit = getattr(config, "max_position_embeddings", None)
            limit = f", up to {limit} tokens" if limit else ""
            lines.append(f"{role:8} {self.names.get(role, '?')}: {_short(model)}, {where}{limit}")
        if self.tokenizer is None:
            return "\n".join(lines + ["tokens   no tokenizer"])
        chat = "with a chat template" if self.tokenizer.chat_template else "no chat template"
        return "\n".join(lines + [f"tokens   {self.vocab_size} shared ids, {chat}"])

    def prompt(self, text: str, *, system: str | None = None, chat: bool = True, **template_options: Any) -> str:
        """Return the text to give to `generate`: `text` inside the tokenizer's chat template, if it has one.

        `system` is the system prompt; `chat=False` returns `text` as it is; `template_options` go to the template
        (Qwen3: `enable_thinking=False`). Raises ValueError if a system prompt has no place to go.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}.")
        if system is not None and not isinstance(system, str):
            raise TypeError(f"system must be a string or None, got {type(system).__name__}.")
        template = getattr(self.tokenizer, "chat_template", None)
        if not chat or not template:
            if system:
                why = "chat=False was given" if template else "this tokenizer has no chat template"
                raise ValueError(f"system={system[:40]!r} cannot be used: {why}. Write it into the prompt itself.")
            return text
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": text})
        return _render(self.tokenizer, turns, system, template_options)


def load_pair(
    expert: str | os.PathLike | PreTrainedModel | None = None,
    amateur: str | os.PathLike | PreTrainedModel | None = None,
    *,
    device: Any = "auto",
    dtype: Any = "auto",
    tokenizer: str | os.PathLike | PreTrainedTokenizerBase | None = None,
    progress: bool | None = None,
    **from_pretrained_kwargs: Any,
) -> Pair:
    """Load an expert and an amateur with the same vocabulary, in eval mode.

    No arguments: the embedded pair (offline, no download). The words "expert", "amateur" and "early" name its three
    models, so `load_pair(amateur="early")` contrasts the expert with its own early checkpoint. Other strings are hub
    ids or local folders (safetensors only, no remote code). Model objects are taken as they are, never moved.

    device: "auto" (CUDA, else MPS, else CPU; the embedded models stay on the CPU), a torch device, or two of them
    for expert and amateur. dtype: "auto" (bfloat16 on CUDA where supported, else float32), a torch dtype, or two.
    tokenizer: shared by both, needed only for model objects that do not know where they came from.
    progress: None shows the loading bars of transformers on a terminal or in a notebook, False never does. Anything
    else (`revision`, `device_map`, ...) goes to `from_pretrained`. Raises ValueError where the vocabularies disagree.
    """
    if expert is not None and amateur is None:
        if not isinstance(expert, PreTrainedModel):
            where("expert", expert)  # a folder that is not there comes first
        raise ValueError(
            f"amateur is missing for expert={label(expert)!r}: name a smaller model of the same family (the same "
            "tokenizer), or use DoLa(model), which contrasts a model with its own layers."
        )
    roles = {"expert": "expert" if expert is None else expert, "amateur": "amateur" if amateur is None else amateur}
    return _load(roles, device, dtype, tokenizer, progress, from_pretrained_kwargs)


def load_expert(
    expert: str | os.PathLike | PreTrainedModel | None = None,
    *,
    device: Any = "auto",
    dtype: Any = "auto",
    tokenizer: str | os.PathLike | PreTrainedTokenizerBase | None = None,
    progress: bool | None = None,
    **from_pretrained_kwargs: Any,
) -> Pair:
    """Load one model alone (greedy, sampling, DoLa): a `Pair` whose amateur is None. Arguments as in `load_pair`."""
    roles = {"expert": "expert" if expert is None else expert}
    return _load(roles, device, dtype, tokenizer, progress, from_pretrained_kwargs)


def _load(roles, device, dtype, tokenizer, progress, options) -> Pair:
    if options.pop("trust_remote_code", False):
        raise ValueError("trust_remote_code=True is refused: load the model yourself and pass the object.")
    if options.pop("use_safetensors", True) is False:
        raise ValueError("use_safetensors=False is refused: load the model yourself and pass the object.")
    devices = for_each_role(device, roles, "device")
    dtypes = for_each_role(dtype, roles, "dtype")
    hub_options = {key: options[key] for key in _HUB_OPTIONS if key in options}

    # tokenizers first: a disagreement must not cost a download of weights
    tokenizers = {role: tokenizer_of(role, source, tokenizer, hub_options) for role, source in roles.items()}
    shared = next((t for t in tokenizers.values() if t is not None), None)
    real = None if shared is None else _max_id(shared) + 1
    if tokenizers.get("amateur") is not None and tokenizers["expert"] is not None:
        real = common_vocab_size(tokenizers["expert"], tokenizers["amateur"])

    models: dict[str, PreTrainedModel] = {}
    for role, source in roles.items():
        if isinstance(source, PreTrainedModel):
            if not source.can_generate():
                raise TypeError(f"{role} is a {type(source).__name__}, not a causal language model.")
            models[role] = source.eval()
        elif role == "amateur" and source == roles["expert"] and dtypes[role] == dtypes["expert"]:
            models[role] = models["expert"]
        else:
            models[role] = model_of(role, source, devices[role], dtypes[role], progress, options)
    _check_eos(models, shared, real)
    rows = [model.config.get_text_config().vocab_size for model in models.values()]
    if shared is None and len(set(rows)) > 1:
        raise ValueError(
            f"expert scores {rows[0]} tokens and amateur {rows[1]}, and neither has a tokenizer to compare: "
            "pass tokenizer= if they share one."
        )
    names = {role: label(source) for role, source in roles.items()}
    return Pair(models["expert"], models.get("amateur"), shared, min([*rows, real or rows[0]]), names)


def common_vocab_size(expert: PreTrainedTokenizerBase, amateur: PreTrainedTokenizerBase) -> int:
    """Return how many ids mean the same token in both tokenizers, or raise ValueError naming the first that differs.

    One side may go on with added tokens after the other has ended (padding); nothing else may differ.
    """
    if expert is amateur:
        return _max_id(expert) + 1
    left, right = (({i: t for t, i in tok.get_vocab().items()}) for tok in (expert, amateur))
    size = min(max(left), max(right)) + 1
    longer, tok = (left, expert) if max(left) >= max(right) else (right, amateur)
    added = tok.added_tokens_decoder
    extra = [i for i in sorted(longer) if i >= size and i not in added]
    wrong = [i for i in range(size) if left.get(i) != right.get(i)] or extra
    if wrong:
        token = wrong[0]
        raise ValueError(
            f"expert and amateur use different tokenizers: token {token} is {left.get(token)!r} for the expert and "
            f"{right.get(token)!r} for the amateur. Take two models of one family, or wrap the amateur in "
            "cdlearn.TextSpace(model, tokenizer, expert_tokenizer)."
        )
    return size


def _max_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values())


def _short(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    count = sum(p.numel() for p in model.parameters())
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
    layers = getattr(config, "num_hidden_layers", "?")
    width = getattr(config, "hidden_size", "?")
    return f"{config.model_type}, {layers} layers x {width}, {size} parameters"


def _check_eos(models: dict, tokenizer: PreTrainedTokenizerBase | None, real: int | None) -> None:
    eos = models["expert"].generation_config.eos_token_id if models["expert"].generation_config else None
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    size = min([m.config.get_text_config().vocab_size for m in models.values()] + ([real] if real else []))
    if ids and all(i >= size for i in ids):
        raise ValueError(
            f"the expert ends its texts with token {ids[0]}, outside the {size} tokens that both models share: "
            "take an amateur that knows this token."
        )


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict], system: str | None, options: dict) -> str:
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:  # templates raise whatever jinja or their authors chose
        if system:
            raise ValueError(
                f"the chat template of this tokenizer takes no system prompt ({error}): put it into the prompt itself."
            ) from error
        raise ValueError(f"the chat template of this tokenizer failed ({error}): use chat=False.") from error
    if system and system.strip() not in text:
        raise ValueError("the chat template of this tokenizer drops the system prompt: put it into the prompt itself.")
    # tokenizing adds the BOS that many templates have written already: leave only one
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        text = text[len(bos) :]
    return text
