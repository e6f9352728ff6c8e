"""Tiny random models of every architecture family the tests run on: made in memory, no files, no network."""

import torch
import transformers as hf

from cdlearn import CachedLM

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "opt", "gpt_neox", "gemma", "mistral")

_WIDTH = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
_PLAIN = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=256
)
# name -> (config class, model class, sizes)
_FAMILIES = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, _WIDTH),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, _WIDTH),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, dict(_WIDTH, head_dim=8)),
    "gpt2": (
        hf.GPT2Config,
        hf.GPT2LMHeadModel,
        dict(n_embd=32, n_layer=3, n_head=4, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    ),
    "opt": (
        hf.OPTConfig,
        hf.OPTForCausalLM,
        dict(
            hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=256,
            word_embed_proj_dim=32, dropout=0.0,
        ),
    ),
    "gpt_neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, _PLAIN),
    "gemma": (hf.GemmaConfig, hf.GemmaForCausalLM, dict(_WIDTH, head_dim=8)),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, dict(_WIDTH, sliding_window=None)),
}  # fmt: skip


def tiny_model(name, *, vocab_size=97, seed=0, **config_overrides):
    """A tiny random `name` model (see ARCHITECTURES) in eval mode, float32; ids 0, 1, 2 are pad, bos, eos.

    The weights are drawn wide enough that the next token depends on the whole prefix. `config_overrides` go to the
    family's config class, e.g. `tie_word_embeddings=True` or `sliding_window=8`.
    """
    config_class, model_class, sizes = _FAMILIES[name]
    settings = dict(
        sizes, vocab_size=vocab_size, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False
    )
    settings.update(config_overrides)
    model = model_class(config_class(**settings)).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.dim() < 2:
                continue  # norms and biases keep their neutral values
            is_table = path.split(".")[-2] in ("embed_tokens", "embed_in", "embed_positions", "wte", "wpe")
            scale = 1.0 if is_table else 1.5 * weight.shape[-1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=random) * scale)
    return model


class Interrupted(CachedLM):
    """The stop button in the middle of the fourth pass."""

    calls = 0

    def scores(self, ids, mask, n):
        self.calls += 1
        if self.calls == 4:
            raise KeyboardInterrupt
        return super().scores(ids, mask, n)
