"""Load an expert and an amateur that speak the same tokens: embedded, from the hub, from folders, or as objects."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cdlearn.checks import check_flag, short, watched
from cdlearn.pairs.checkpoint import plain
from cdlearn.pairs.loading import PLACE_OPTIONS, for_each_role, label, locate, model_of, tokenizer_of, where
from cdlearn.sources.cached import check_model, context_limit

_HUB_OPTIONS = ("cache_dir", "token", "local_files_only", "force_download")


@dataclass(eq=False, repr=False)
class Pair:
    """An expert, an amateur (None after `load_expert`) and the tokenizer they share.

    `vocab_size` is the number of token ids both can score: padding rows beyond it are trimmed. `notes`: what was
    dequantised, and why "auto" chose the dtype.
    """

    expert: PreTrainedModel
    amateur: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    vocab_size: int
    names: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """A few lines of text: both models with their size, type and place, and the tokenizer."""
        lines = []
        for role, model in (("expert", self.expert), ("amateur", self.amateur)):
            if model is not None:
                limit, note = context_limit(model), self.notes.get(role)
                place = f"{plain(model.dtype)} on {model.device}" + (f" ({note})" if note else "")
                place += f", up to {limit} tokens" if limit else ""
                lines.append(f"{role:8} {self.names.get(role, '?')}: {_short(model)}, {place}")
        chat = "with a chat template" if getattr(self.tokenizer, "chat_template", None) else "no chat template"
        tokens = "no tokenizer" if self.tokenizer is None else f"{self.vocab_size} shared ids, {chat}"
        return "\n".join([*lines, f"tokens   {tokens}"])

    __repr__ = describe

    def prompt(self, text: str | list, *, system: str | None = None, chat: bool = True, **template_options: Any) -> str:
        """The text to give to `generate`: `text` inside the tokenizer's chat template, if it has one.

        text: a string, or turns as transformers takes them, `[{"role": "user", "content": "Hi"}, ...]`. `system` is the
        system prompt; `chat=False` returns a string as it is; `template_options` go to the template (Qwen3:
        `enable_thinking=False`). Raises ValueError for what has no place to go.
        """
        turns = [{"role": "user", "content": text}] if isinstance(text, str) else text
        good = isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)
        if not good or not all(isinstance(turn.get(key), str) for turn in turns for key in ("role", "content")):
            raise TypeError(f'text is {short(text)}: pass a string, or a list of {{"role": "user", "content": "..."}}.')
        if system is not None and not isinstance(system, str):
            raise TypeError(f"system is {short(system)}: pass a string.")
        check_flag(chat, "chat")
        tokenizer = self.tokenizer
        template = getattr(tokenizer, "chat_template", None)
        if not chat or not template:
            why = "chat=False was given" if template else "this tokenizer has no chat template"
            if system:
                raise _no_place(system, why)
            if not isinstance(text, str):
                raise ValueError(f"text holds {len(turns)} turns, and {why}: pass one string.")
            return text
        if system:
            if any(turn["role"] == "system" for turn in turns):
                raise _no_place(system, "the turns hold a system prompt already")
            turns = [{"role": "system", "content": system}, *turns]
        template_options.setdefault("add_generation_prompt", not template_options.get("continue_final_message"))
        try:
            whole = tokenizer.apply_chat_template(list(turns), tokenize=False, **template_options)
        except Exception as error:  # templates raise whatever jinja or their authors chose
            advice = "leave out system=" if system else "pass one string with chat=False"
            raise ValueError(f"the chat template failed ({error}): {advice}.") from error
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
    ids, local folders (safetensors only, no remote code) or paths to .gguf files (they need the extra `gguf`; the
    weights are dequantised, which saves download, not memory). Model objects are taken as they are, in eval mode, and
    neither moved nor changed.

    device: "auto" (CUDA, else MPS, else CPU; the embedded models stay on the CPU), a torch device, or one each.
    dtype: "auto" (the checkpoint's own where the device computes in it, bfloat16 for quantised GGUF files, else
    float32; float32 for the embedded models), a torch dtype, or one each. revision, subfolder, gguf_file: where in a
    hub id or folder the models lie, one value or one each. tokenizer: shared by both, needed only for model objects
    that do not know where they came from. progress: None shows the loading bars of transformers on a terminal or in a
    notebook, False never does (but for the one of its GGUF reader). Anything else (`cache_dir`, `device_map`, ...) goes
    to `from_pretrained`. Raises ValueError where the vocabularies disagree; warns where memory is too small.
    """
    if expert is not None and amateur is None:
        if not isinstance(expert, PreTrainedModel):
            where("expert", expert)  # a folder that is not there comes first
        advice = "name a smaller model of its family, or use DoLa(model), which contrasts a model with its own layers"
        raise ValueError(f"amateur is missing for expert={label(expert)!r}: {advice}.")
    return _load({"expert": expert, "amateur": amateur}, device, dtype, tokenizer, progress, **from_pretrained_kwargs)


def load_expert(expert: str | os.PathLike | PreTrainedModel | None = None, **options: Any) -> Pair:
    """Load one model alone (greedy, sampling, DoLa): a `Pair` whose amateur is None. Options as in `load_pair`."""
    return _load({"expert": expert}, **options)


def _load(roles: dict, device="auto", dtype="auto", tokenizer=None, progress=None, **options: Any) -> Pair:
    for name, refused in (("trust_remote_code", True), ("use_safetensors", False)):
        if options.pop(name, None) == refused:
            raise ValueError(f"{name}={refused} is refused: load the model yourself and pass the object.")
    check_flag(progress, "progress", none=True)
    dtype = options.pop("torch_dtype", dtype)  # its older name in transformers
    roles = {role: role if source is None else source for role, source in roles.items()}
    devices, dtypes = for_each_role(device, roles, "device"), for_each_role(dtype, roles, "dtype")
    inside = {name: for_each_role(options.pop(name, None), roles, name) for name in PLACE_OPTIONS}
    own = {role: {name: values[role] for name, values in inside.items() if values[role]} for role in roles}
    hub_options = {key: options[key] for key in _HUB_OPTIONS if key in options}
    quiet, models, notes = not (watched() if progress is None else progress), {}, {}
    places = {role: locate(role, source, own[role], hub_options) for role, source in roles.items()}
    # tokenizers first: a disagreement must not cost a download of weights
    found = [tokenizer_of(role, roles[role], places[role], tokenizer, hub_options) for role in roles]
    tokenizers = [one for one in found if one is not None]
    shared = [common_vocab_size(tokenizers[0], tokenizers[-1])] if tokenizers else []
    for role, source in roles.items():
        asked = [(roles[r], own[r], devices[r], dtypes[r]) for r in (role, "expert")]
        if isinstance(source, PreTrainedModel):
            check_model(source, role)
            models[role] = source
        elif models and asked[0] == asked[1]:
            models[role], notes[role] = models["expert"], notes["expert"]
        else:
            wanted = {"device": devices[role], "dtype": dtypes[role], "quiet": quiet, "options": options}
            models[role], notes[role] = model_of(role, source, places[role], **wanted)
    rows = [model.config.get_text_config().vocab_size for model in models.values()]
    if not shared and len(set(rows)) > 1:
        both = f"expert scores {rows[0]} tokens and amateur {rows[1]}, and neither has a tokenizer to compare"
        raise ValueError(f"{both}: pass tokenizer= if they share one.")
    size = min(rows + shared)
    eos = getattr(models["expert"].generation_config, "eos_token_id", None)
    if eos is not None and min(eos if isinstance(eos, list) else [eos], default=0) >= size:
        outside = f"token {eos}, outside the {size} tokens that both models share"
        raise ValueError(f"the expert ends its texts with {outside}: take an amateur that knows this token.")
    names = {role: label(source, **own[role]) for role, source in roles.items()}
    return Pair(models["expert"], models.get("amateur"), tokenizers[0] if tokenizers else None, size, names, notes)


def common_vocab_size(expert: PreTrainedTokenizerBase, amateur: PreTrainedTokenizerBase) -> int:
    """How many ids mean the same token in both tokenizers; ValueError names the first that differs.

    One side may go on with added tokens after the other has ended (padding); nothing else may differ.
    """
    # GGUF files spell their padding out
    left, right = ({i: t for t, i in side.get_vocab().items() if t != f"[PAD{i}]"} for side in (expert, amateur))
    size = min(max(left), max(right)) + 1
    added = (expert if max(left) >= max(right) else amateur).added_tokens_decoder
    for i in sorted(left | right):
        if left.get(i) != right.get(i) and (i < size or i not in added):
            first = f"token {i} is {left.get(i)!r} for the expert and {right.get(i)!r} for the amateur"
            advice = "or wrap the amateur in cdlearn.TextSpace(model, tokenizer, expert_tokenizer)"
            different = f"expert and amateur use different tokenizers: {first}"
            raise ValueError(f"{different}. Take two models of one family, {advice}.")
    return size
