"""Load an expert and an amateur that speak the same tokens: embedded, from the hub, from folders, or as objects."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cdlearn.checks import short
from cdlearn.pairs.loading import for_each_role, label, model_of, tokenizer_of, where

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "subfolder", "force_download")


@dataclass(eq=False, repr=False)
class Pair:
    """An expert, an amateur (None after `load_expert`) and the tokenizer they share.

    `vocab_size` is the number of token ids both can score: padding rows beyond it are trimmed.
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
        """A few lines of text: both models with their size, type and place, and the tokenizer."""
        lines = []
        for role, model in self._models():
            limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            place = f"{str(model.dtype).removeprefix('torch.')} on {model.device}"
            place += f", up to {limit} tokens" if limit else ""
            lines.append(f"{role:8} {self.names.get(role, '?')}: {_short(model)}, {place}")
        chat = "with a chat template" if getattr(self.tokenizer, "chat_template", None) else "no chat template"
        tokens = "no tokenizer" if self.tokenizer is None else f"{self.vocab_size} shared ids, {chat}"
        return "\n".join([*lines, f"tokens   {tokens}"])

    def prompt(self, text: str, *, system: str | None = None, chat: bool = True, **template_options: Any) -> str:
        """The text to give to `generate`: `text` inside the tokenizer's chat template, if it has one.

        `system` is the system prompt; `chat=False` returns `text` as it is; `template_options` go to the template
        (Qwen3: `enable_thinking=False`). Raises ValueError if a system prompt has no place to go.
        """
        for name, value in (("text", text), ("system", "" if system is None else system)):
            if not isinstance(value, str):
                raise TypeError(f"{name} is {short(value)}: pass a string.")
        tokenizer = self.tokenizer
        template = getattr(tokenizer, "chat_template", None)
        if not chat or not template:
            if system:
                raise _no_place(system, "chat=False was given" if template else "this tokenizer has no chat template")
            return text
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": text})
        try:
            whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **template_options)
        except Exception as error:  # templates raise whatever jinja or their authors chose
            if system:
                raise _no_place(system, f"the chat template takes no system prompt ({error})") from error
            raise ValueError(f"the chat template of this tokenizer failed ({error}): use chat=False.") from error
        if system and system.strip() not in whole:
            raise _no_place(system, "the chat template drops the system prompt")
        # tokenizing adds the BOS that many templates have written already: leave only one
        bos = tokenizer.bos_token
        twice = bos and whole.startswith(bos) and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        return whole.removeprefix(bos) if twice else whole


def _no_place(system: str, why: str) -> ValueError:
    return ValueError(f"system={system[:40]!r} cannot be used: {why}. Write it into the prompt itself.")


def _short(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    count = sum(p.numel() for p in model.parameters())
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
    layers, width = (getattr(config, name, "?") for name in ("num_hidden_layers", "hidden_size"))
    return f"{config.model_type}, {layers} layers x {width}, {size} parameters"


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
    return _load({"expert": expert, "amateur": amateur}, device, dtype, tokenizer, progress, from_pretrained_kwargs)


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
    return _load({"expert": expert}, device, dtype, tokenizer, progress, from_pretrained_kwargs)


def _load(roles: dict, device: Any, dtype: Any, tokenizer: Any, progress: bool | None, options: dict) -> Pair:
    for name, refused in (("trust_remote_code", True), ("use_safetensors", False)):
        if options.pop(name, None) == refused:
            raise ValueError(f"{name}={refused} is refused: load the model yourself and pass the object.")
    roles = {role: role if source is None else source for role, source in roles.items()}
    devices, dtypes = for_each_role(device, roles, "device"), for_each_role(dtype, roles, "dtype")
    hub_options = {key: options[key] for key in _HUB_OPTIONS if key in options}

    # tokenizers first: a disagreement must not cost a download of weights
    tokenizers = [tokenizer_of(role, source, tokenizer, hub_options) for role, source in roles.items()]
    tokenizers = [known for known in tokenizers if known is not None]
    shared = [common_vocab_size(tokenizers[0], tokenizers[-1])] if tokenizers else []

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
    rows = [model.config.get_text_config().vocab_size for model in models.values()]
    if not shared and len(set(rows)) > 1:
        raise ValueError(
            f"expert scores {rows[0]} tokens and amateur {rows[1]}, and neither has a tokenizer to compare: "
            "pass tokenizer= if they share one."
        )
    size = min(rows + shared)
    eos = getattr(models["expert"].generation_config, "eos_token_id", None)
    if eos is not None and min(eos if isinstance(eos, list) else [eos], default=0) >= size:
        raise ValueError(
            f"the expert ends its texts with token {eos}, outside the {size} tokens that both models share: "
            "take an amateur that knows this token."
        )
    names = {role: label(source) for role, source in roles.items()}
    return Pair(models["expert"], models.get("amateur"), tokenizers[0] if tokenizers else None, size, names)


def common_vocab_size(expert: PreTrainedTokenizerBase, amateur: PreTrainedTokenizerBase) -> int:
    """How many ids mean the same token in both tokenizers; ValueError names the first that differs.

    One side may go on with added tokens after the other has ended (padding); nothing else may differ.
    """
    left, right = ({i: token for token, i in side.get_vocab().items()} for side in (expert, amateur))
    size = min(max(left), max(right)) + 1
    added = (expert if max(left) >= max(right) else amateur).added_tokens_decoder
    for i in sorted(left | right):
        if left.get(i) != right.get(i) and (i < size or i not in added):
            raise ValueError(
                f"expert and amateur use different tokenizers: token {i} is {left.get(i)!r} for the expert and "
                f"{right.get(i)!r} for the amateur. Take two models of one family, or wrap the amateur in "
                "cdlearn.TextSpace(model, tokenizer, expert_tokenizer)."
            )
    return size
