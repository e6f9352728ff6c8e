"""Any source as a Hugging Face causal language model, and contrastive decoding as a logits processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation.utils import GENERATION_MODES_MAPPING
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cdlearn.checks import check_contrast, check_mask, check_shapes
from cdlearn.scores import NEVER, contrastive_logits, contrastive_scores
from cdlearn.sources import Source, as_source


class SourceConfig(PreTrainedConfig):
    """What transformers wants to know of a source; one layer, since the cache is one list of token ids."""

    model_type = "cdlearn_source"

    def __init__(self, vocab_size: int = 1, max_position_embeddings: int | None = None, **options: Any) -> None:
        self.vocab_size, self.max_position_embeddings = vocab_size, max_position_embeddings
        self.num_hidden_layers, self.hidden_size, self.num_attention_heads = 1, 1, 1
        super().__init__(**options)


class SourceForCausalLM(PreTrainedModel, GenerationMixin):
    """A source with the interface of a transformers model; made by `as_causal_lm`.

    A source keeps its own caches and finds out what it may reuse, so the cache that `generate()` carries, crops and
    reorders holds nothing but the token ids so far: [B, 1, T, 1] "keys" of one layer.
    """

    config_class = SourceConfig
    _supports_sdpa = True
    main_input_name = "input_ids"

    def __init__(self, config: SourceConfig, source: Source | None = None) -> None:
        super().__init__(config)
        if source is None:
            raise TypeError("source is missing: build this model with cdlearn.hf.as_causal_lm(source).")
        self.source = source

    @property
    def device(self) -> torch.device:
        return self.source.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def to(self, *args: Any, **kwargs: Any) -> SourceForCausalLM:
        return self  # the source's models stay where they were loaded

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        position_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids: [B, T] the new ones; attention_mask: [B, all columns]. Returns logits [B, T or fewer, V]."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        whole = input_ids
        if past_key_values is not None:
            column = input_ids[:, None, :, None]
            whole = past_key_values.update(column, column, 0)[0][:, 0, :, 0]  # (B, all columns)
        if attention_mask is not None:
            check_shapes(attention_mask, whole, "attention_mask", "the tokens so far")
        logits = self.source(whole, attention_mask, logits_to_keep or input_ids.shape[1]).to(input_ids.device)
        if not return_dict and return_dict is not None:
            return (logits, past_key_values)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def generate(self, *args: Any, logits_processor: Any = None, **options: Any) -> Any:
        """As in transformers; ValueError where its processors leave no number, as guidance_scale over a mask does."""
        processors = LogitsProcessorList([*(logits_processor or ()), _CheckLeft()])
        return super().generate(*args, logits_processor=processors, **options)


class _CheckLeft(LogitsProcessor):
    """The last processor of `generate`: the others may turn the -inf of masked tokens into NaN."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not scores.amax().item() > NEVER:  # nor is NaN, which spreads through a maximum
            what = "guidance_scale, or another processor of generate(), leaves no number among the tokens that are kept"
            raise ValueError(f"{what}: build the source with alpha=None, or guide with cdlearn.Mix.")
        return scores


AutoConfig.register(SourceConfig.model_type, SourceConfig, exist_ok=True)
AutoModelForCausalLM.register(SourceConfig, SourceForCausalLM, exist_ok=True)
# pipelines look the class up by this table, which register() leaves alone
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[SourceConfig.model_type] = SourceForCausalLM.__name__


def as_causal_lm(source: Source | PreTrainedModel) -> SourceForCausalLM:
    """A source (or model) with the whole `generate()` of transformers: beams, streamers, assistants, pipelines.

    The log-softmax that beam search and sampling take is that of the source's scores. `assistant_model=` works where
    the source can be rewound. Raises TypeError for anything that is no source and no model.
    """
    source = as_source(source, "source")
    model = SourceForCausalLM(SourceConfig(source.vocab_size, source.max_positions), source).eval()
    eos = list(source.eos_token_ids) or None
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=eos[0] if eos else 0, do_sample=False)
    return model


class ContrastiveLogitsProcessor(LogitsProcessor):
    """Contrastive decoding inside the expert's own `generate()`: `logits_processor=[ContrastiveLogitsProcessor(...)]`.

    amateur: source or model with the expert's tokens; alpha, strength or beta, amateur_temperature, top_k as in
    `Contrast`. attention_mask: [B, T] of the prompts where they are padded on the left. Beams need no care: the amateur
    finds every row's parent by its tokens. Under beam search transformers adds the processed scores to the beams'
    totals as they are, which is closer to the paper's objective than `as_causal_lm`, whose scores pass a log-softmax.
    """

    def __init__(
        self,
        amateur: Source | PreTrainedModel,
        *,
        alpha: float | None = 0.1,
        strength: float | None = None,
        beta: float | None = None,
        amateur_temperature: float = 1.0,
        top_k: int = 0,
        attention_mask: Tensor | None = None,
    ) -> None:
        self._numbers = check_contrast(alpha, top_k, strength, beta, amateur_temperature)
        self._formula = contrastive_scores if beta is None else contrastive_logits
        self.amateur = as_source(amateur, "amateur")
        self.attention_mask = None if attention_mask is None else check_mask(attention_mask, "attention_mask")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: [B, T] so far; scores: [B, V] the expert's. Returns [B, V], -inf where not kept."""
        amateur = self.amateur(input_ids, self._mask(input_ids))[:, -1].to(scores.device)
        vocab = min(scores.shape[-1], amateur.shape[-1])
        contrast = self._formula(scores[:, :vocab], amateur[:, :vocab], **self._numbers)
        return torch.nn.functional.pad(contrast, (0, scores.shape[-1] - vocab), value=NEVER)

    def _mask(self, input_ids: Tensor) -> Tensor | None:
        if self.attention_mask is None:
            return None
        mask = self.attention_mask.to(input_ids.device)
        if len(input_ids) % len(mask) or mask.shape[1] > input_ids.shape[1]:
            shapes = f"attention_mask has shape {tuple(mask.shape)} and the tokens so far {tuple(input_ids.shape)}"
            raise ValueError(f"{shapes}: pass the mask of the very prompts that generate() gets.")
        mask = mask.repeat_interleave(len(input_ids) // len(mask), dim=0)  # beams lie side by side
        return torch.nn.functional.pad(mask, (0, input_ids.shape[1] - mask.shape[1]), value=1)


def contrastive_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    amateur: Source | PreTrainedModel,
    alpha: float | None = 0.1,
    strength: float | None = None,
    beta: float | None = None,
    amateur_temperature: float = 1.0,
    logits_processor: list[LogitsProcessor],
    generation_config: GenerationConfig,
    **prepared: Any,
) -> Any:
    """Contrastive decoding for `expert.generate(..., custom_generate=contrastive_generate, amateur=...)`.

    The numbers are those of `Contrast`; greedy decoding, sampling and beams as the other arguments of `generate()` say,
    with a `ContrastiveLogitsProcessor` before every other processor. transformers keeps streamers, stop strings and
    assistants from such a function: use `as_causal_lm` for them. Raises as `Contrast` does.
    """
    numbers = {"strength": strength, "beta": beta, "amateur_temperature": amateur_temperature}
    mask = prepared.get("attention_mask")
    logits_processor.insert(0, ContrastiveLogitsProcessor(amateur, alpha=alpha, attention_mask=mask, **numbers))
    decode = getattr(model, GENERATION_MODES_MAPPING[generation_config.get_generation_mode()])
    return decode(input_ids, logits_processor=logits_processor, generation_config=generation_config, **prepared)
