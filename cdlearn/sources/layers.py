"""Early exits, and the surgery on a model that they and its layers' logits need: shells around the same weights."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cdlearn.checks import check_count, check_flag
from cdlearn.sources.base import float32
from cdlearn.sources.cached import CachedLM, check_model
from cdlearn.sources.probes import alike, few, known

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "layer_norm", "layernorm", "ln_out")
_NORMS += ("embedding_norm", "final_norm")


class EarlyExit(CachedLM):
    """The first `layer` layers of a model, then its final norm and head: it costs that share of the layers.

    layer: 1 to the number of layers, counted as transformers counts hidden states. The weights are shared, not copied.
    final_norm=False leaves the norm out, as DoLa's official code does. Early exits as drafts: LayerSkip (arXiv
    2404.16710), section 4.3; as amateurs: DoLa (2309.03883) with a fixed layer. Raises TypeError or ValueError for a
    model that cannot be cut there.
    """

    def __init__(self, model: PreTrainedModel, layer: int, *, final_norm: bool = True, remember: int = 16) -> None:
        check_model(model)
        count = model.config.get_text_config(decoder=True).num_hidden_layers
        layer = check_count(layer, "layer", high=count)
        check_flag(final_norm, "final_norm")
        norm, _ = known(ending, model)
        super().__init__(_truncated(model, layer, "" if final_norm else norm), remember=remember)
        self.settings = {"method": "early exit", "model": type(model).__name__, "layer": layer}
        try:
            self(few(self.vocab_size))
        except Exception as error:  # whatever an architecture raises that was not made to be cut
            cut = f"layer={layer}: a {type(model).__name__} does not run without its later layers"
            raise ValueError(f"{cut} ({error}): take a later one, or another model as the draft or amateur.") from error
        self.reset()


def finish(model: PreTrainedModel, logits: Tensor, scale: float) -> Tensor:
    """What some models do after their head: a factor, a soft cap."""
    config = model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    logits = logits if scale == 1 else logits * scale
    return float32(logits if cap is None else torch.tanh(logits / cap) * cap)


def ending(model: PreTrainedModel) -> tuple[str, float]:
    """The name of the final norm ("": none), and the factor between the head's output and the model's logits.

    Found by two passes over four tokens. Raises ValueError for a model that does more after its last layer.
    """
    decoder, name, blocks = blocks_of(model)
    head, notes = model.get_output_embeddings(), {"keep": 4}
    probe = few(head.weight.shape[0]).to(model.get_input_embeddings().weight.device)
    theirs = float32(model(input_ids=probe, use_cache=False).logits)  # first: RWKV's first pass rescales its weights
    shell = shell_of(decoder)
    shell._modules[name] = nn.ModuleList([*blocks[:-1], noting(blocks[-1], "last", notes, leaving=True)])
    last = shell(input_ids=probe, use_cache=False).last_hidden_state
    norm = next((key for key in _NORMS if decoder._modules.get(key) is not None), "")
    state = notes["last"]
    for step in filter(None, map(decoder._modules.get, (norm, "project_out"))):
        state = step(state)
    ours = head(last)
    fitted = float((ours.double() * theirs.double()).sum() / (ours.double() ** 2).sum())
    for scale in (1.0, fitted):
        if alike(state, last) and alike(finish(model, ours, scale), theirs):
            return norm, scale
    raise ValueError(
        f"{type(model).__name__} does more than a norm, a head and a scale after its last layer, so the logits of "
        "earlier layers cannot be read off: use Contrast with an amateur model instead."
    )


def blocks_of(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """A model's decoder, and the name and the list of its layers there, or a TypeError that names the architecture."""
    decoder, config = model.get_decoder(), model.config.get_text_config(decoder=True)
    decoder = getattr(model, "model", model) if decoder is model else decoder  # Llama 4
    lists = [(name, child) for name, child in decoder.named_children() if isinstance(child, nn.ModuleList)]
    lists = [(name, child) for name, child in lists if len(child) == config.num_hidden_layers]
    if len(lists) != 1 or getattr(config, "num_kv_shared_layers", 0):
        raise TypeError(
            f"{type(model).__name__} keeps its layers in a way that cannot be split here: use another model as the "
            "draft or amateur instead of an early exit."
        )
    return decoder, *lists[0]


def _truncated(model: PreTrainedModel, layer: int, without: str) -> PreTrainedModel:
    """The same model with the first layers only (`without` a norm): new shells around the very same weights."""
    decoder, name, blocks = blocks_of(model)
    path = next(path for path, module in model.named_modules() if module is decoder)
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = layer
    for key in {"layer_types", "layers_block_type"} & vars(text).keys():  # elsewhere they are made from the number
        setattr(text, key, (vars(text)[key] or [])[:layer] or None)
    twin = shell = shell_of(model)
    twin.config = config
    for step in path.split("."):
        shell._modules[step] = shell_of(shell._modules[step])
        shell = shell._modules[step]
        shell.config = text if shell.config is model.config.get_text_config(decoder=True) else config
    shell._modules[name] = nn.ModuleList(list(blocks)[:layer])
    if without:
        shell._modules[without] = nn.Identity()
    return twin


def shell_of(module: nn.Module) -> nn.Module:
    """A shallow copy whose children can be replaced without touching the original."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for name, value in vars(module).items():  # accelerate's hooks are bound to the original, and would run its children
        if isinstance(value, types.MethodType) and value.__self__ is module:
            vars(twin)[name] = types.MethodType(value.__func__, twin)
        elif isinstance(value, functools.partial) and value.args == (module,):
            again = functools.partial(value.func, twin, **value.keywords)
            vars(twin)[name] = functools.update_wrapper(again, value)  # with its signature
    return twin


def noting(block: nn.Module, key: Any, notes: dict[Any, Any], leaving: bool = False) -> nn.Module:
    """A copy of a block that notes the last notes["keep"] columns of the state that enters it, or that leaves it."""

    def note(state: Any) -> None:
        state = state[0] if isinstance(state, (tuple, list)) else state
        notes[key] = state[:, -notes["keep"] :].clone()  # a view would keep the states of the whole prompt

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not leaving:
            note(args[0] if args else kwargs["hidden_states"])
        output = block.forward(*args, **kwargs)
        if leaving:
            note(output)
        return output

    twin = copy.copy(block)
    twin.forward = forward
    return twin
