"""One model against its own earlier layers: DoLa's contrast of the last one with another, and SLED's use of all."""

from __future__ import annotations

import inspect
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from cdlearn.checks import check_alpha, check_count, check_flag, check_number, check_word, short
from cdlearn.scores import NEVER, dola_scores, js_divergence, sled_latent, sled_step
from cdlearn.sources.cached import CachedLM
from cdlearn.sources.layers import blocks_of, ending, finish, noting, shell_of
from cdlearn.sources.probes import known
from cdlearn.trace.record import Form

_LARGE = 2**24  # weights of a head from which a CPU is slow at few float32 rows
# the head's product with few rows: which is fastest depends on the CPU, its threads and the number of rows
_PRODUCTS = (
    linear,
    lambda rows, weight: (weight @ rows.T).T.contiguous(),
    lambda rows, weight: torch.cat([linear(rows, part) for part in weight.split(3 * 2**19 // weight.shape[1] + 1)], -1),
)


class _Layered(CachedLM):
    """A model whose earlier layers are heard in the same pass, each through the final norm and the head."""

    def __init__(self, model: PreTrainedModel, layers: str | list[int], final_norm: bool, remember: int) -> None:
        super().__init__(model, remember=remember)
        check_flag(final_norm, "final_norm")
        self.layers, self.final_norm = _layers(model, layers), bool(final_norm)
        norm, self._scale = known(ending, model)  # Cohere, Granite: logits are scaled after the head
        self._listen()
        self._takes = set(inspect.signature(blocks_of(model)[0].forward).parameters)
        self._norm = self._decoder._modules[norm] if norm else None
        self._project = getattr(self._decoder, "project_out", None)  # OPT-350M: hidden width differs from embedding's
        self._times: dict[int, list[float]] = {}  # rows -> the seconds that each of _PRODUCTS took

    def changed(self, **settings: Any) -> _Layered:
        known = {name: value for name, value in self.settings.items() if name != "method"}
        return type(self)(self.model, **known | settings)

    def fork(self) -> _Layered:
        twin = super().fork()
        twin._listen()
        return twin

    def _listen(self) -> None:
        """A decoder of this source's own around the model's weights, whose blocks note the states that enter them."""
        decoder, name, blocks = blocks_of(self.model)
        self._decoder, self._notes = shell_of(decoder), {"keep": 1}
        heard = [noting(block, k, self._notes) if k in self.layers else block for k, block in enumerate(blocks)]
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

    def _logits(self, ids: Tensor, mask: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
        """The last layer's logits, [B, n, V], and those of `layers`, [B, n, L, V]."""
        (states,) = self._columns(ids, mask, n)
        logits = finish(self.model, self._head(states), self._scale).to(self.device)
        return logits[:, :, 0], logits[:, :, 1:]

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


class DoLa(_Layered):
    """DoLa: the model's last layer against the earlier layer that differs most from it (arXiv 2309.03883, eq. 2-4).

    layers: "low" (even layers below the middle), "high" (even layers from the middle on), "all", or a list of layers;
    layer 0 is the embedding output, the last layer is not a candidate. With tied embeddings the words start at layer 2,
    as in the official code. At every position of every row the layer that diverges most is taken; one layer in the
    list is the static form. final_norm: apply the model's final norm to early layers too (the official code does not).
    divergence: "jsd" (Jensen-Shannon) or "reference", what the official code computes: see `js_divergence`; without a
    mask (alpha=None) it also subtracts raw logits. `details` holds "premature_layer" [B, n] and "divergences"
    [B, n, L], one for each of `layers`; `parts` their logits, "layers" [B, n, L, V].
    """

    def __init__(
        self, model: PreTrainedModel, *, layers: str | list[int] = "low", alpha: float | None = 0.1,
        final_norm: bool = True, divergence: str = "jsd", remember: int = 16,
    ) -> None:  # fmt: skip
        super().__init__(model, layers, final_norm, remember)
        check_word(divergence, "divergence", ("jsd", "reference"))
        self.alpha, self.divergence = check_alpha(alpha), divergence
        self._numbers = torch.tensor(self.layers, device=self.device)
        numbers = {"layers": self.layers, "alpha": self.alpha, "final_norm": self.final_norm, "divergence": divergence}
        self.settings = {"method": "dola"} | numbers
        self.forms = (Form({"expert": 1.0}, {"amateur": 1.0}, raw=None if divergence == "reference" else False),)
        self.unnormalised = divergence == "reference" and self.alpha is None  # raw logits on both sides

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        final, early = self._logits(ids, mask, n)
        convention = "textbook" if self.divergence == "jsd" else "reference"
        divergences = js_divergence(final[:, :, None], early, convention=convention, check=False)  # (B, n, L)
        chosen = divergences.argmax(dim=-1)  # (B, n)
        premature = early.take_along_dim(chosen[..., None, None], dim=2)[:, :, 0]  # (B, n, V)
        self.parts = {"expert": final, "amateur": premature, "layers": early}
        self.details = {"premature_layer": self._numbers[chosen], "divergences": divergences}
        if self.unnormalised:
            return (final - premature).where(final > NEVER, NEVER)
        return dola_scores(final, premature, alpha=self.alpha, check=False)


class SLED(_Layered):
    """SLED: the last layer's logits moved towards where all earlier layers were heading (arXiv 2411.02433).

    Where DoLa subtracts one layer, SLED lets every layer vote for the `evolution_scale` best tokens and moves their
    logits by at most `evolution_rate`: see `sled_scores`, and `sled_latent` for the votes. layers and final_norm as in
    `DoLa` (the official code leaves the norm out); nothing outside the best tokens can be drawn. `details` holds
    "layer_weights" [B, n, L], each layer's share of the votes. Raises TypeError or ValueError naming the argument.
    """

    def __init__(
        self, model: PreTrainedModel, *, layers: str | list[int] = "all", evolution_rate: float = 2.0,
        evolution_scale: int = 10, final_norm: bool = True, remember: int = 16,
    ) -> None:  # fmt: skip
        super().__init__(model, layers, final_norm, remember)
        rate = check_number(evolution_rate, "evolution_rate", high=1e6)
        scale = check_count(evolution_scale, "evolution_scale")
        self.settings = {"method": "sled", "layers": self.layers, "evolution_rate": rate, "evolution_scale": scale}
        self.settings["final_norm"], self.unnormalised = self.final_norm, True

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        final, early = self._logits(ids, mask, n)
        top, votes = sled_latent(final, early, evolution_scale=self.settings["evolution_scale"], check=False)
        self.parts, self.details = {"expert": final}, {"layer_weights": votes.sum(dim=-1)}
        return sled_step(final, top, votes, self.settings["evolution_rate"])


def _layers(model: PreTrainedModel, layers: str | list[int]) -> list[int]:
    """The candidate layers as numbers."""
    config = model.config.get_text_config(decoder=True)
    count, tied = config.num_hidden_layers, bool(getattr(config, "tie_word_embeddings", False))
    advice = f'pass "low", "high", "all" or a list of layers from 0 to {count - 1}, each once'
    if isinstance(layers, str) and layers in ("low", "high", "all"):
        start, stop = {"low": (0, count // 2), "high": (count // 2, count), "all": (0, count)}[layers]
        step = 1 if layers == "all" else 2
        chosen = [layer for layer in range(start, stop) if layer % step == 0 and layer >= (2 if tied else 0)]
        if not chosen:
            start = " (tied embeddings: from layer 2 on)" if tied else ""
            raise ValueError(f"layers={layers!r} leaves no layer of this model's {count}{start}: {advice}.")
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
