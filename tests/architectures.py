"""Architectures and what works with each: tiny random models, every cell compared with a full pass without a cache.

`row(family)` is what tests/test_architectures.py checks and `page()` what .ci/pages.py writes to
notebooks/architectures.md.
"""

import re

import torch
import transformers as hf
from transformers import AutoConfig, AutoModelForCausalLM

from cdlearn import CachedLM, DoLa, EarlyExit, speculate
from cdlearn.sources import Source

CLOSE = dict(atol=2e-4, rtol=2e-4)
STEPS = 12  # tokens written after every prompt
LENGTHS = (5, 34, 39)  # of the prompts
COLUMNS = ("incremental", "rewound", "left-padded batch", "ragged speculate", "DoLa", "EarlyExit")

_IDS = dict(vocab_size=97, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
_PLAIN = _IDS | dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=256
)
_WIDTH = _PLAIN | dict(num_key_value_heads=2, head_dim=8)
_GPT = _IDS | dict(n_embd=32, n_layer=4, n_head=4, n_positions=256)
_MOE = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
_LATENT = dict(
    num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1,
    first_k_dense_replace=1,
)  # fmt: skip
_STATE = _IDS | dict(hidden_size=32, state_size=8, num_hidden_layers=4)
_HYBRID = _PLAIN | dict(num_key_value_heads=2, mamba_d_state=8, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1)
_HYBRID |= dict(mamba_chunk_size=4, mamba_expand=2)
_DELTA = dict(layer_types=["linear_attention", "full_attention"] * 2, linear_num_value_heads=4, linear_num_key_heads=2)
_DELTA |= dict(linear_key_head_dim=8, linear_value_head_dim=8)
_LONG = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[2.0, 3.0, 4.0, 5.0])
# name on the page -> (model type, sizes)
FAMILIES = {
    "Llama": ("llama", _WIDTH),
    "Llama 4, text": ("llama4_text", _WIDTH | _MOE | dict(attention_chunk_size=8, intermediate_size_mlp=48)),
    "Mistral, sliding window": ("mistral", _WIDTH | dict(sliding_window=6)),
    "Mixtral": ("mixtral", _WIDTH | _MOE),
    "Qwen 2": ("qwen2", _WIDTH),
    "Qwen 3": ("qwen3", _WIDTH),
    "Qwen 3 MoE": ("qwen3_moe", _WIDTH | _MOE),
    "Gemma 2": ("gemma2", _WIDTH | dict(sliding_window=6, query_pre_attn_scalar=8)),
    "Gemma 3, text": ("gemma3_text", _WIDTH | dict(sliding_window=6, query_pre_attn_scalar=8)),
    "Gemma 3n, text": ("gemma3n_text", _WIDTH | dict(
        sliding_window=6, num_kv_shared_layers=2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=97,
        altup_num_inputs=2, laurel_rank=4, layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
    )),
    "Phi 3": ("phi3", _WIDTH),
    "Phi 3, longrope": ("phi3", _PLAIN | dict(
        num_key_value_heads=2, original_max_position_embeddings=40,
        rope_parameters=_LONG | dict(original_max_position_embeddings=40),
    )),
    "OLMo 3": ("olmo3", _WIDTH | dict(sliding_window=6)),
    "SmolLM 3": ("smollm3", _WIDTH),
    "GLM 4": ("glm4", _WIDTH),
    "GPT-OSS": ("gpt_oss", _WIDTH | _MOE | dict(sliding_window=6)),
    "DeepSeek V2": ("deepseek_v2", _PLAIN | _LATENT),
    "DeepSeek V3": ("deepseek_v3", _PLAIN | _LATENT),
    "Granite": ("granite", _WIDTH | dict(logits_scaling=8.0)),
    "Cohere 2": ("cohere2", _WIDTH | dict(logit_scale=0.0625, sliding_window=6)),
    "StableLM": ("stablelm", _WIDTH),
    "Falcon, ALiBi": ("falcon", _PLAIN | dict(alibi=True, new_decoder_architecture=False, multi_query=False)),
    "Bloom": ("bloom", _IDS | dict(hidden_size=32, n_layer=4, n_head=4)),
    "MPT": ("mpt", _IDS | dict(d_model=32, n_layers=4, n_heads=4, max_seq_len=256)),
    "GPT-2": ("gpt2", _GPT),
    "GPT-J": ("gptj", _GPT | dict(rotary_dim=4)),
    "GPT-Neo": ("gpt_neo", _IDS | dict(
        hidden_size=32, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]], window_size=6,
        max_position_embeddings=256, intermediate_size=48,
    )),
    "GPT-NeoX": ("gpt_neox", _PLAIN),
    "GPT-1": ("openai-gpt", _GPT),
    "OPT": ("opt", _PLAIN | dict(ffn_dim=48, word_embed_proj_dim=32)),
    "OPT-350M": ("opt", _PLAIN | dict(ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "XGLM": ("xglm", _IDS | dict(d_model=32, ffn_dim=48, num_layers=4, attention_heads=4, dropout=0.0)),
    "BioGPT": ("biogpt", _PLAIN),
    "CTRL": ("ctrl", _IDS | dict(n_embd=32, dff=48, n_layer=4, n_head=4, n_positions=256)),
    "LFM2": ("lfm2", _WIDTH | dict(layer_types=["conv", "full_attention"] * 2)),
    "Mamba": ("mamba", _STATE),
    "Mamba 2": ("mamba2", _STATE | dict(num_heads=4, head_dim=16, n_groups=1, chunk_size=4, expand=2)),
    "Falcon Mamba": ("falcon_mamba", _STATE),
    "Falcon H1": ("falcon_h1", _HYBRID | dict(head_dim=8, mamba_d_ssm=64)),
    "Bamba": ("bamba", _HYBRID | dict(attn_layer_indices=[1, 3])),
    "Jamba": ("jamba", _PLAIN | dict(
        num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=4, mamba_d_state=8, mamba_dt_rank=4,
    )),
    "Granite 4, hybrid": ("granitemoehybrid", _HYBRID | _MOE | dict(
        layer_types=["mamba", "attention"] * 2, shared_intermediate_size=48,
    )),
    "Zamba 2": ("zamba2", _PLAIN | dict(
        num_key_value_heads=2, layers_block_type=["mamba", "hybrid"] * 2, mamba_d_state=8, mamba_headdim=16,
        n_mamba_heads=4, mamba_ngroups=1, chunk_size=4, num_mem_blocks=1,
    )),
    "Qwen 3 Next": ("qwen3_next", _WIDTH | _MOE | _DELTA | dict(shared_expert_intermediate_size=16)),
    "RecurrentGemma": ("recurrent_gemma", _WIDTH | dict(
        lru_width=32, attention_window_size=6, conv1d_width=4, block_types=["recurrent", "attention"],
    )),
    "MiniMax": ("minimax", _WIDTH | _MOE | dict(block_size=4)),
    "RWKV": ("rwkv", _IDS | dict(hidden_size=32, num_hidden_layers=4, rescale_every=2, context_length=256)),
    "xLSTM": ("xlstm", _IDS | dict(
        hidden_size=32, num_hidden_layers=4, num_blocks=4, num_heads=4, chunk_size=4, mode="inference",
    )),
    "BERT, as a decoder": ("bert", _PLAIN | dict(is_decoder=True)),
    "BERT": ("bert", _PLAIN),
    "XLNet": ("xlnet", _IDS | dict(d_model=32, n_layer=4, n_head=4, d_inner=48)),
}  # fmt: skip


def model_of(family, seed=0):
    """A tiny random model, its weights drawn wide enough that the next token depends on the whole prefix."""
    kind, sizes = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.dim() < 2 or re.search("A_log|dt_proj|conv1d|conv_1d|time_", path):
                continue  # norms, biases and the clocks of a state keep their neutral values
            table = re.search(r"embed|wte|wpe|\bw\b", path)
            scale = 1.0 if table else 1.5 * weight.shape[-1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=random) * scale)
        model.get_input_embeddings().weight[0] = 0.0  # the padding row, as real models have it
    return model


@torch.no_grad()
def fresh(model, ids):
    """The logits after one row of ids: no cache, no padding."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()


def blocks_of(model):
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)


def early(model, ids, layer):
    """The state that enters block `layer`, read by whatever the model does after its last block."""
    blocks, state = blocks_of(model), []
    enter = blocks[layer].register_forward_pre_hook(
        lambda _, args, named: state.append((args[0] if args else named["hidden_states"]).clone()), with_kwargs=True
    )
    leave = blocks[-1].register_forward_hook(
        lambda _, args, output: type(output)([state[0], *output[1:]]) if isinstance(output, (tuple, list)) else state[0]
    )
    logits = fresh(model, ids)
    enter.remove(), leave.remove()
    return logits


class Told(Source):
    """A draft that knows what the target would write, and is wrong in places that differ from row to row."""

    vocab_size = 97

    def __init__(self, texts):
        super().__init__()
        self.next = {tuple(text[:k]): text[k] for text in texts for k in range(1, len(text))}

    def scores(self, ids, mask, n):
        scores = torch.zeros(len(ids), n, 97)
        for row, tokens in enumerate(ids):
            for k in range(n):
                stop = ids.shape[1] - n + k + 1
                real = tokens[:stop] if mask is None else tokens[:stop][mask[row, :stop]]
                wrong = (len(real) * 7 + int(real[0])) % 5 == 0
                scores[row, k, (self.next.get(tuple(real.tolist()), 5) + wrong) % 97] = 9.0
        return scores


class Case:
    """One family: what it writes after three prompts, by full passes, and whether a source says the same."""

    def __init__(self, family):
        self.model, random = model_of(family), torch.Generator().manual_seed(1)
        self.texts, self.want = [], {}
        for length in LENGTHS:
            text = torch.randint(3, 97, (length,), generator=random).tolist()
            for _ in range(STEPS):
                self.want[tuple(text)] = fresh(self.model, text)
                text = [*text, int(self.want[tuple(text)].argmax())]
            self.texts.append(text)
        self.read = 0  # tokens that passed the embedding
        self.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _, args):
        self.read += args[0].numel()

    def right(self, source, rows, n=1):
        """Whether the scores after the last n tokens of every row are those of full passes."""
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return self.same(source(ids, mask, n), rows)

    def same(self, scores, rows):
        """Where the full passes were made: the prefixes of the texts, at least one of them."""
        n = scores.shape[1]
        pairs = [(scores[r, k], self.want.get(tuple(row[: len(row) - n + 1 + k]))) for r, row in enumerate(rows)
                 for k in range(n)]  # fmt: skip
        pairs = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
        return bool(pairs) and all(torch.allclose(ours, theirs, **CLOSE) for ours, theirs in pairs)

    def incremental(self):
        source, text, before = CachedLM(self.model), self.texts[1], self.read
        assert all(self.right(source, [text[:stop]]) for stop in range(LENGTHS[1], len(text)))
        return "works" if self.read - before < 2 * len(text) else "slow"

    def rewound(self):
        source, text, start = CachedLM(self.model), self.texts[1], LENGTHS[1]
        for stop, n in ((10, 3), (3, 1), (9, 4), (2, 1), (1, 1), (8, 7), (0, 1), (11, 6)):
            assert self.right(source, [text[: start + stop]], n), (stop, n)
        other = [*text[: start + 2], 5, 6]
        assert torch.allclose(source(torch.tensor([other]))[0, -1], fresh(self.model, other), **CLOSE)
        return "works"

    def padded(self):
        source = CachedLM(self.model)
        for step in (0, 1, 2, 5, 9, 8):
            assert self.right(source, [text[: n + step] for text, n in zip(self.texts, LENGTHS)]), step
        return "works"

    def ragged(self):
        case, before = self, self.read

        class Checked(CachedLM):
            def scores(self, ids, mask, n):
                scores = super().scores(ids, mask, n)
                for row in range(len(ids)):
                    for k in range(n):
                        stop = ids.shape[1] - n + k + 1
                        real = torch.ones(stop).bool() if mask is None else mask[row, :stop]
                        text = ids[row, :stop][real].tolist()
                        assert (
                            not real[-1]
                            or tuple(text) not in case.want
                            or case.same(scores[row : row + 1, k : k + 1], [text])
                        )
                return scores

        made = speculate(
            Checked(self.model), Told(self.texts), [text[:n] for text, n in zip(self.texts, LENGTHS)], gamma=3,
            max_new_tokens=STEPS, eos_token_ids=(), trace=False, progress=False,
        )  # fmt: skip
        assert [one.token_ids for one in made] == [text[n:] for text, n in zip(self.texts, LENGTHS)]
        assert len({one.stats["rounds"] for one in made}) > 1 and all(0 < one.stats["accepted"] for one in made)
        rounds = sum(one.stats["rounds"] for one in made)
        return "works" if self.read - before < sum(LENGTHS) + 25 * rounds else "slow"

    def dola(self):
        source, text = DoLa(self.model, layers=[1, 2]), self.texts[1]
        for stop in (LENGTHS[1], LENGTHS[1] + 1, LENGTHS[1] + 5):
            source(torch.tensor([text[:stop]]))
            assert self.same(source.parts["expert"], [text[:stop]])
            for k, layer in enumerate((1, 2)):
                want = early(self.model, text[:stop], layer)
                assert torch.allclose(source.parts["layers"][0, -1, k], want, **CLOSE), layer
        return "works"

    def exits(self):
        source, text = EarlyExit(self.model, 2), self.texts[1]
        for stop in (LENGTHS[1], LENGTHS[1] + 1, LENGTHS[1] + 5, LENGTHS[1] + 2):
            got = source(torch.tensor([text[:stop]]))[0, -1]
            assert torch.allclose(got, early(self.model, text[:stop], 2), **CLOSE), stop
        try:
            first = EarlyExit(self.model, 1)
        except ValueError as refused:  # before its first attention layer a hybrid cannot count
            assert "layer=1" in str(refused)
        else:
            assert torch.allclose(first(torch.tensor([text]))[0, -1], early(self.model, text, 1), **CLOSE)
        return "works"


def row(family):
    """Column -> "works", "slow" (right, by reading the text again), or the words of a refusal."""
    case, cells = Case(family), {}
    checks = (case.incremental, case.rewound, case.padded, case.ragged, case.dola, case.exits)
    weights = {name: weight.clone() for name, weight in case.model.state_dict().items()}
    attributes = set(vars(case.model)), case.model.config.to_dict()
    for column, check in zip(COLUMNS, checks):
        try:
            cells[column] = check()
        except (TypeError, ValueError) as refused:
            kind = type(case.model).__name__
            assert kind in str(refused), f"{family}, {column}: {refused}"
            cells[column] = re.sub(rf"^\w+ is a {kind}", "the model is one", str(refused)).replace(kind, "the model")
    assert (set(vars(case.model)), case.model.config.to_dict()) == attributes
    assert all(torch.equal(weights[name], weight) for name, weight in case.model.state_dict().items())
    return cells


def line(family, cells, reasons):
    """A row of the page. reasons: the words of the refusals so far, to which new ones are added."""
    words = []
    for cell in cells.values():
        if cell not in ("works", "slow") and cell not in reasons:
            reasons.append(cell)
        words.append(
            {"works": "works", "slow": "works, reads again"}.get(cell) or f"refused ({reasons.index(cell) + 1})"
        )
    return f"| {family} | `{FAMILIES[family][0]}` | {' | '.join(words)} |"


def page():
    reasons = []
    lines = [line(family, row(family), reasons) for family in FAMILIES]
    return "\n".join([
        "# Architectures", "",
        "What works with which family of models. Every cell was tried on a tiny random model of the family and "
        "compared with a full pass without a cache; a test tries it again. Made by `make pages`, with transformers "
        f"{hf.__version__}. For a model of yours: `cdlearn doctor --expert MODEL`.", "",
        "- *incremental*: token by token over a cache; *rewound*: tokens taken back and others fed.",
        "- *left-padded batch*: rows of different lengths; *ragged speculate*: rows that accept different numbers of "
        "drafted tokens, with the family as the target.",
        "- *DoLa* and *EarlyExit*: earlier layers read by the model's own norm and head.",
        "- *works, reads again*: the results are right, but the text is read again: at every step where the family's "
        "cache cannot be used, at every check of a draft where its state goes on by one token at a time only.",
        "- *refused*: a sentence before any token is drawn.", "",
        "| family | `model_type` | " + " | ".join(COLUMNS) + " |", "|" + " --- |" * (2 + len(COLUMNS)),
        *lines, "",
        "The refusals:", "",
        *[f"{k}. {reason}" for k, reason in enumerate(reasons, 1)], "",
    ])  # fmt: skip
