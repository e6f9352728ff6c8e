"""One model against itself: early exits, and DoLa's contrast of the last layer with an earlier one."""

from __future__ import annotations

import copy
import functools
import inspect
import time
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from cdlearn.checks import check_alpha, check_count, check_flag, check_word, short
from cdlearn.scores import NEVER, dola_scores, js_divergence
from cdlearn.sources.base import float32
from cdlearn.sources.cached import CachedLM, check_model
from cdlearn.sources.probes import alike, few, known
from cdlearn.trace.record import Form

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "layer_norm", "layernorm", "ln_out")
_NORMS += ("embedding_norm", "final_norm")
_LARGE = 2**24  # weights of a head from which a CPU is slow at few float32 rows
# the head's product with few rows: which is fastest depends on the CPU, its threads and the number of rows
_PRODUCTS = (
    linear,
    lambda rows, weight: (weight @ rows.T).T.contiguous(),
    lambda rows, weight: torch.cat([linear(rows, part) for part in weight.split(3 * 2**19 // weight.shape[1] + 1)], -1),
)


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
        norm, _ = known(_ending, model)
        super().__init__(_truncated(model, layer, "" if final_norm else norm), remember=remember)
        self.settings = {"method": "early exit", "model": type(model).__name__, "layer": layer}
        try:
            self(few(self.vocab_size))
        except Exception as error:  # whatever an architecture raises that was not made to be cut
            cut = f"layer={layer}: a {type(model).__name__} does not run without its later layers"
            raise ValueError(f"{cut} ({error}): take a later one, or another model as the draft or amateur.") from error
        self.reset()


class DoLa(CachedLM):
    """DoLa: the model's last layer against the earlier layer that differs most from it (arXiv 2309.03883, eq. 2-4).

    layers: "low" (even layers below the middle), "high" (even layers from the middle on), or a list of layers; layer 0
    is the embedding output, the last layer is not a candidate. With tied embeddings "low" and "high" start at layer 2,
    as in the official code. At every position of every row the layer that diverges most is taken; one layer in the
    list is the static form. final_norm: apply the model's final norm to early layers too (the official code does not).
    divergence: "jsd" (Jensen-Shannon) or "reference", what the official code computes: see `js_divergence`; without a
    mask (alpha=None) it also subtracts raw logits. `details` holds "premature_layer" [B, n] and "divergences"
    [B, n, L], one for each of `layers`; `parts` their logits, "layers" [B, n, L, V].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        layers: str | list[int] = "low",
        alpha: float | None = 0.1,
        final_norm: bool = True,
        divergence: str = "jsd",
        remember: int = 16,
    ) -> None:
        super().__init__(model, remember=remember)
        check_word(divergence, "divergence", ("jsd", "reference"))
        check_flag(final_norm, "final_norm")
        self.layers, self.alpha = _dola_layers(model, layers), check_alpha(alpha)
        self.final_norm, self.divergence = bool(final_norm), divergence
        numbers = {"layers": self.layers, "alpha": self.alpha, "final_norm": self.final_norm, "divergence": divergence}
        self.settings = {"method": "dola"} | numbers
        self.forms = (Form({"expert": 1.0}, {"amateur": 1.0}, raw=None if divergence == "reference" else False),)
        self.unnormalised = divergence == "reference" and self.alpha is None  # raw logits on both sides
        self._numbers = torch.tensor(self.layers, device=self.device)
        norm, self._scale = known(_ending, model)  # Cohere, Granite: logits are scaled after the head
        self._listen()
        self._takes = set(inspect.signature(_blocks(model)[0].forward).parameters)
        self._norm = self._decoder._modules[norm] if norm else None
        self._project = getattr(self._decoder, "project_out", None)  # OPT-350M: hidden width differs from embedding's
        self._times: dict[int, list[float]] = {}  # rows -> the seconds that each of _PRODUCTS took

    def changed(self, **settings: Any) -> DoLa:
        known = {name: value for name, value in self.settings.items() if name != "method"}
        return DoLa(self.model, **known | settings)

    def fork(self) -> DoLa:
        twin = super().fork()
        twin._listen()
        return twin

    def _listen(self) -> None:
        """A decoder of this source's own around the model's weights, whose blocks note the states that enter them."""
        decoder, name, blocks = _blocks(self.model)
        self._decoder, self._notes = _shell(decoder), {"keep": 1}
        heard = [_noting(block, k, self._notes) if k in self.layers else block for k, block in enumerate(blocks)]
        self._decoder._modules[name] = nn.ModuleList(heard)

    def _run(self, keep: int, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        """The states that the head will read, [B, keep, 1 + L, width]: the last layer's, then the candidates'."""
        self._notes["keep"] = keep
        inputs = {name: value for name, value in inputs.items() if name in self._takes or name == "past_key_values"}
        last = self._decoder(**inputs).last_hidden_state[:, -keep:]
        states = torch.stack([self._notes.pop(layer).to(last.device) for layer in self.layers], dim=2)
        states = self._norm(states) if self.final_norm and self._norm is not None else states
        states = states if self._project is None else self._project(states)
        return (torch.cat([last[:, :, None], states], dim=2),)  # the last hidden state is already normed

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        (states,) = self._columns(ids, mask, n)
        logits = _finish(self.model, self._head(states), self._scale).to(self.device)
        final, early = logits[:, :, 0], logits[:, :, 1:]  # (B, n, V), (B, n, L, V)
        convention = "textbook" if self.divergence == "jsd" else "reference"
        divergences = js_divergence(final[:, :, None], early, convention=convention, check=False)  # (B, n, L)
        chosen = divergences.argmax(dim=-1)  # (B, n)
        premature = early.take_along_dim(chosen[..., None, None], dim=2)[:, :, 0]  # (B, n, V)
        self.parts = {"expert": final, "amateur": premature, "layers": early}
        self.details = {"premature_layer": self._numbers[chosen], "divergences": divergences}
        if self.unnormalised:
            return (final - premature).where(final > NEVER, NEVER)
        return dola_scores(final, premature, alpha=self.alpha, check=False)

    def _head(self, states: Tensor) -> Tensor:
        """All states in one pass, so that the weights are read once, by the product that was fastest so far."""
        head = self.model.get_output_embeddings()
        plain = type(head) is nn.Linear and "forward" not in vars(head) and not head._forward_hooks
        large = head.weight.numel() > _LARGE and head.weight.dtype == torch.float32 and states.device.type == "cpu"
        rows = states.flatten(end_dim=-2)
        if not plain or not large or len(rows) > 64:
            return head(states)
        times = self._times.setdefault(len(rows), [0.0] * len(_PRODUCTS))
        best, start = times.index(min(times)), time.perf_counter()
        logits = _PRODUCTS[best](rows, head.weight)
        times[best] = time.perf_counter() - start  # the latest, so that a choice that was bad luck is made again
        return (logits if head.bias is None else logits + head.bias).view(*states.shape[:-1], -1)


def _finish(model: PreTrainedModel, logits: Tensor, scale: float) -> Tensor:
    """What some models do after their head: a factor, a soft cap."""
    config = model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    logits = logits if scale == 1 else logits * scale
    return float32(logits if cap is None else torch.tanh(logits / cap) * cap)


def _ending(model: PreTrainedModel) -> tuple[str, float]:
    """The name of the final norm ("": none), and the factor between the head's output and the model's logits.

    Found by two passes over four tokens. Raises ValueError for a model that does more after its last layer.
    """
    decoder, name, blocks = _blocks(model)
    head, notes = model.get_output_embeddings(), {"keep": 4}
    probe = few(head.weight.shape[0]).to(model.get_input_embeddings().weight.device)
    theirs = float32(model(input_ids=probe, use_cache=False).logits)  # first: RWKV's first pass rescales its weights
    shell = _shell(decoder)
    shell._modules[name] = nn.ModuleList([*blocks[:-1], _noting(blocks[-1], "last", notes, leaving=True)])
    last = shell(input_ids=probe, use_cache=False).last_hidden_state
    norm = next((key for key in _NORMS if decoder._modules.get(key) is not None), "")
    state = notes["last"]
    for step in filter(None, map(decoder._modules.get, (norm, "project_out"))):
        state = step(state)
    ours = head(last)
    fitted = float((ours.double() * theirs.double()).sum() / (ours.double() ** 2).sum())
    for scale in (1.0, fitted):
        if alike(state, last) and alike(_finish(model, ours, scale), theirs):
            return norm, scale
    raise ValueError(
        f"{type(model).__name__} does more than a norm, a head and a scale after its last layer, so the logits of "
        "earlier layers cannot be read off: use Contrast with an amateur model instead."
    )


def _blocks(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
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
    decoder, name, blocks = _blocks(model)
    path = next(path for path, module in model.named_modules() if module is decoder)
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = layer
    for key in {"layer_types", "layers_block_type"} & vars(text).keys():  # elsewhere they are made from the number
        setattr(text, key, (vars(text)[key] or [])[:layer] or None)
    twin = shell = _shell(model)
    twin.config = config
    for step in path.split("."):
        shell._modules[step] = _shell(shell._modules[step])
        shell = shell._modules[step]
        shell.config = text if shell.config is model.config.get_text_config(decoder=True) else config
    shell._modules[name] = nn.ModuleList(list(blocks)[:layer])
    if without:
        shell._modules[without] = nn.Identity()
    return twin


def _shell(module: nn.Module) -> nn.Module:
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


def _noting(block: nn.Module, key: Any, notes: dict[Any, Any], leaving: bool = False) -> nn.Module:
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


def _dola_layers(model: PreTrainedModel, layers: str | list[int]) -> list[int]:
    """The candidate layers as numbers."""
    config = model.config.get_text_config(decoder=True)
    count, tied = config.num_hidden_layers, bool(getattr(config, "tie_word_embeddings", False))
    advice = f'pass "low", "high" or a list of layers from 0 to {count - 1}, each once'
    if isinstance(layers, str) and layers in ("low", "high"):
        start, stop = (0, count // 2) if layers == "low" else (count // 2, count)
        chosen = [layer for layer in range(start, stop) if layer % 2 == 0 and layer >= (2 if tied else 0)]
        if not chosen:
            start = " (tied embeddings: from layer 2 on)" if tied else ""
            raise ValueError(f"layers={layers!r} leaves no even layer of this model's {count}{start}: {advice}.")
        return chosen
    kind = ValueError
    try:
        given = list(layers)
        chosen = [int(layer) for layer in given if not isinstance(layer, bool) and layer == int(layer)]
    except (ArithmeticError, RuntimeError, TypeError, ValueError):
        chosen, kind = [], ValueError if isinstance(layers, str) else TypeError
    if not chosen or len(set(chosen)) != len(given) or min(chosen) < 0 or max(chosen) >= count:
        raise kind(f"layers is {short(layers)}: {advice}.")
    return chosen
