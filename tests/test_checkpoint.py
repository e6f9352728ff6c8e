"""What a checkpoint says of itself: GGUF files, the dtype that "auto" means, memory, revisions, context limits."""

import re
import struct
from types import SimpleNamespace

import gguf
import pytest
import torch
import transformers as hf
from conftest import CHARACTERS, SPECIAL, character_tokenizer
from packaging.version import Version
from safetensors.torch import load_file, save_file
from test_pairs import CHAT, save
from tiny import tiny_model
from transformers.convert_slow_tokenizer import bytes_to_unicode

from cdlearn import CachedLM, generate
from cdlearn.pairs import checkpoint, loading
from cdlearn.pairs.checkpoint import Checkpoint, free_memory, native, pick_dtype
from cdlearn.pairs.pair import load_expert, load_pair
from cdlearn.sources.cached import context_limit

CPU, IDS = torch.device("cpu"), torch.tensor([[1, 40, 41, 42, 50]])
BFLOAT16 = {True: torch.bfloat16, False: torch.float32}


def tiny(family, seed=0, **options):
    """A tiny model that GGUF can say: its head is tied where the architecture always ties it."""
    if family != "gemma3":
        return tiny_model(family, vocab_size=99, seed=seed, **options)
    torch.manual_seed(seed)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=8)
    more = dict(num_key_value_heads=2, max_position_embeddings=256, sliding_window=64, initializer_range=0.5)
    config = hf.Gemma3TextConfig(vocab_size=99, **sizes, **more, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return hf.Gemma3ForCausalLM(config).eval()


def write_gguf(path, model, family, *, quantise=None, padding=0, scaling=None, leave_out="no such", extra=()):
    """Save a model as llama.cpp's own converter does: its names, its order of rotary rows, its shifted norms."""
    config, writer = model.config, gguf.GGUFWriter(str(path), family)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if family == "gemma3":
        writer.add_key_length(8)
        writer.add_sliding_window(64)
        writer.add_rope_freq_base(1e6)
    else:
        writer.add_rope_freq_base(1e4)
        writer.add_rope_dimension_count(8)
    if scaling:
        writer.add_rope_scaling_type(scaling)
    if quantise:
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    gemma = family == "gemma3"
    spelling = {ord(" "): "\u2581"} if gemma else bytes_to_unicode()
    tokens = ["<|endoftext|>", *SPECIAL[1:], *(spelling.get(ord(c), c) for c in CHARACTERS), "Hi", "Ya"]
    tokens += [f"[PAD{99 + i}]" for i in range(padding)]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama" if gemma else "gpt2")
    writer.add_tokenizer_pre("default" if gemma else "gpt-2")
    writer.add_token_list(tokens)
    if gemma:
        writer.add_token_scores([0.0] * 97 + [-1.0, -2.0])
        writer.add_add_space_prefix(False)
        writer.add_add_bos_token(True)
    else:
        writer.add_token_merges(["H i", "Y a"])
    writer.add_token_types([3] * 3 + [1] * 96 + [5] * padding)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[family], config.num_hidden_layers)
    weights = {
        k: v for k, v in model.state_dict().items() if not (config.tie_word_embeddings and k == "lm_head.weight")
    }
    for name, weight in weights.items():
        if family == "llama" and re.search("[qk]_proj", name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        if family == "gemma3" and "norm" in name:
            weight = weight + 1
        if padding and ("embed_tokens" in name or "lm_head" in name):
            weight = torch.cat([weight, torch.zeros(padding, weight.shape[1])])
        path_, suffix = name.rsplit(".", 1)
        if leave_out not in name:
            data = weight.float().contiguous().numpy()
            packed = quantise if weight.dim() == 2 else None
            data = gguf.quants.quantize(data, packed) if packed else data
            writer.add_tensor(f"{names.get_name(path_)}.{suffix}", data, raw_dtype=packed)
    for name in extra:
        writer.add_tensor(name, torch.ones(8).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


# ---- GGUF

with_gguf = pytest.mark.skipif(Version(hf.__version__) < Version("5.23"), reason="older ones spoil its tokenizers")


@with_gguf
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_gguf_file_is_its_source_model(family, tmp_path):
    models = [tiny(family, seed) for seed in (1, 2)]
    files = [write_gguf(tmp_path / f"m{i}.gguf", model, family) for i, model in enumerate(models)]
    pair = load_pair(*files, device="cpu")
    for loaded, model in zip((pair.expert, pair.amateur), models):
        torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
        assert loaded.dtype == torch.float32 and not loaded.training and CachedLM(loaded).eos_token_ids == (2,)
    text, bos = "Ho, b 3}", [1] if family == "gemma3" else []
    assert pair.tokenizer(text).input_ids == bos + character_tokenizer()(text).input_ids
    assert pair.tokenizer("Hi").input_ids == [*bos, 97] and pair.tokenizer.decode([98, 3, 97]) == "Ya Hi"
    assert pair.tokenizer(pair.prompt("Hi")).input_ids[:2] == [1, 62]  # one BOS, the template's or the tokenizer's
    assert pair.names == {"expert": "m0.gguf", "amateur": "m1.gguf"} and str(tmp_path) not in pair.describe()
    assert "dequantised" not in pair.describe()
    made = generate(pair.expert, "Ho", tokenizer=pair.tokenizer, max_new_tokens=3, eos_token_ids=())
    assert made.token_ids[0] == int(logits(models[0], torch.tensor([[*bos, 43, 82]]))[0, -1].argmax())
    pair.expert.save_pretrained(tmp_path / "saved")  # an ordinary model from here on
    torch.testing.assert_close(
        logits(load_expert(tmp_path / "saved", tokenizer=pair.tokenizer).expert), logits(models[0])
    )


@with_gguf
@pytest.mark.parametrize("has", [True, False])
def test_a_quantised_file_says_what_was_dequantised_and_takes_half_precision_where_native(has, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "native", lambda device, dtype: has or dtype == torch.float32)
    model = tiny("qwen2", intermediate_size=64)  # blocks of 32
    pair = load_expert(
        write_gguf(tmp_path / "q.gguf", model, "qwen2", quantise=gguf.GGMLQuantizationType.Q8_0), device="cpu"
    )
    assert pair.expert.dtype == BFLOAT16[has]
    why = "this cpu computes in it" if has else "this cpu does not compute in bfloat16"
    assert f"{checkpoint.plain(BFLOAT16[has])} on cpu (Q8_0, dequantised; auto: {why})" in pair.describe()
    assert 0 < (logits(pair.expert).float() - logits(model)).abs().max() < 1


@with_gguf
def test_gguf_files_with_other_padding_share_what_is_real(tmp_path):
    files = [write_gguf(tmp_path / f"{n}.gguf", tiny("qwen2", n), "qwen2", padding=n) for n in (6, 14)]
    pair = load_pair(*files, device="cpu")
    assert (pair.expert.config.vocab_size, pair.amateur.config.vocab_size) == (105, 113)
    assert pair.vocab_size == 99


@with_gguf
def test_a_gguf_file_inside_a_folder_is_named_per_role(tmp_path):
    for seed in (1, 2):
        write_gguf(tmp_path / f"{seed}.gguf", tiny("llama", seed), "llama")
    pair = load_pair(tmp_path, tmp_path, gguf_file=("1.gguf", "2.gguf"), device="cpu")
    assert pair.expert is not pair.amateur and pair.names["amateur"] == "2.gguf"
    torch.testing.assert_close(logits(pair.amateur), logits(tiny("llama", 2)), atol=1e-5, rtol=1e-5)
    same = load_pair(tmp_path, tmp_path, gguf_file="1.gguf", device="cpu")
    assert same.expert is same.amateur
    with pytest.raises(FileNotFoundError, match="no config.json: name its file, gguf_file='1.gguf'"):
        load_expert(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no file '3.gguf'"):
        load_expert(tmp_path, gguf_file="3.gguf")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_expert(tmp_path / "3.gguf")
    with pytest.raises(FileNotFoundError, match="has no file '1.gguf'"):
        load_expert(tmp_path / "1.gguf", gguf_file="1.gguf")


@with_gguf
def test_a_file_of_that_name_in_the_working_directory_is_another_one(tmp_path, monkeypatch):
    """transformers takes the weights of the working directory's file with the config of the folder's."""
    right = write_gguf(tmp_path / "m.gguf", tiny("llama", 1), "llama")
    (tmp_path / "here").mkdir()
    write_gguf(tmp_path / "here" / "m.gguf", tiny("llama", 2), "llama")
    monkeypatch.chdir(tmp_path / "here")
    torch.testing.assert_close(logits(load_expert(right).expert), logits(tiny("llama", 1)), atol=1e-5, rtol=1e-5)


@with_gguf
def test_a_gguf_file_of_the_hub_comes_from_its_cache(tmp_path, monkeypatch):
    file, asked = write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama"), []
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda *args, **options: file)
    monkeypatch.setattr(loading, "hf_hub_download", lambda *args, **options: asked.append((args, options)) or file)
    pair = load_expert("some/repo", gguf_file="m.gguf", revision="v2", device="cpu")
    assert asked == [(("some/repo", "m.gguf"), {"revision": "v2"})] and pair.names["expert"] == "m.gguf@v2"


@with_gguf
def test_a_damaged_or_foreign_gguf_is_refused_in_a_sentence(tmp_path, monkeypatch):
    model, file = tiny("llama"), tmp_path / "m.gguf"
    with pytest.raises(ValueError, match="lacks weights for 'model.layers.1.mlp.up_proj.weight'"):
        load_expert(write_gguf(file, model, "llama", leave_out="layers.1.mlp.up"), device="cpu")
    for options, says in (
        (dict(scaling=gguf.RopeScalingType.YARN), "yarn"),
        (dict(extra=["rope_freqs.weight"]), "rope_freqs"),
    ):
        with pytest.raises(ValueError, match=f"drops its rope scaling, {says}.*safetensors"):
            load_expert(write_gguf(file, model, "llama", **options), device="cpu")
    with pytest.warns(UserWarning, match="holds 8 weights that transformers does not read"):
        load_expert(write_gguf(file, model, "llama", extra=["blk.0.attn_q.bias"]), device="cpu")
    good = file.read_bytes()
    for bad in (b"nothing", good[:300], b"GGUF" + struct.pack("<I", 99) + good[8:]):
        file.write_bytes(bad)
        with pytest.raises((ValueError, OSError), match="m.gguf.*could not be loaded") as caught:
            load_expert(file, device="cpu")
        assert len(str(caught.value)) < 400
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"GGUF files need .*pip install -e '.\[gguf\]'"):
        load_expert(file)


# ---- the dtype that "auto" means


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_auto_is_the_checkpoint_s_own_dtype_where_the_cpu_computes_in_it(stored, has, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: has)
    folder = tmp_path / "m"
    tiny_model("llama").to(stored).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    pair = load_expert(folder, device="cpu")
    assert pair.expert.dtype == (torch.bfloat16 if has and stored == torch.bfloat16 else torch.float32)
    own = pair.expert.dtype == stored
    assert f"auto: {'the checkpoint' if own else 'this cpu does not compute in'}" in pair.describe()
    assert load_expert("expert").expert.dtype == torch.float32
    assert "auto" not in load_expert(folder, device="cpu", dtype="float32").describe()


@pytest.mark.parametrize("config_says", [True, False])
def test_a_checkpoint_says_its_dtype_and_how_many_weights_it_holds(config_says, tmp_path):
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    if not config_says:
        (tmp_path / "config.json").write_text(text.replace('"dtype": "bfloat16",', ""))
    known, count = (
        checkpoint.read_checkpoint(str(tmp_path), {}),
        sum(p.numel() for p in tiny_model("llama").parameters()),
    )
    assert known == (torch.bfloat16 if config_says else None, count, "")
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert checkpoint.read_checkpoint(str(tmp_path / "parts"), {}) == (torch.bfloat16, count, "")


def test_native_asks_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    cuda = SimpleNamespace(type="cuda")
    assert native(cuda, torch.float16) and not native(cuda, torch.bfloat16) and not native(cuda, torch.float8_e4m3fn)
    assert native(CPU, torch.float32) and native(CPU, torch.float64) and not native(CPU, torch.float16)
    monkeypatch.setattr(checkpoint.platform, "machine", lambda: "arm64")
    assert native(CPU, torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert pick_dtype(CPU, Checkpoint()) == (torch.float32, "the checkpoint names no type")


# ---- memory


@with_gguf
def test_too_little_memory_is_said_with_both_numbers(tmp_path, monkeypatch, recwarn):
    llama = save(tmp_path / "llama")
    file, known = write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama"), checkpoint.read_checkpoint(llama, {})
    load_expert(llama, device="cpu")
    assert not recwarn and free_memory(CPU) > 1e8 and free_memory(torch.device("meta")) == float("inf")
    monkeypatch.setattr(loading, "free_memory", lambda device: 3 * known.weights)
    for source in (llama, file):
        with pytest.warns(
            UserWarning, match=r"expert=.* needs 0\.0 GB for its weights in float32 and 0\.0 GB are free on cpu"
        ):
            load_expert(source, device="cpu")
    recwarn.clear()
    load_expert(llama, device="cpu", dtype="bfloat16")  # half of it fits
    assert not recwarn


def test_free_memory_minds_the_cgroup(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    5000 kB\n",
        "/proc/self/cgroup": "0::/jobs/one\n",
        "/sys/fs/cgroup/jobs/memory.max": "3000000",
        "/sys/fs/cgroup/jobs/memory.current": "1000000",
        "/sys/fs/cgroup/jobs/memory.stat": "anon 5\ninactive_file 100000\n",
        "/sys/fs/cgroup/jobs/one/memory.max": "max",
        "/sys/fs/cgroup/jobs/one/memory.current": "1",
    }

    def read(path):
        if path.as_posix() not in files:
            raise FileNotFoundError(path)
        return files[path.as_posix()]

    monkeypatch.setattr(checkpoint.Path, "read_text", read)
    assert free_memory(CPU) == 2_100_000
    del files["/sys/fs/cgroup/jobs/memory.max"]
    assert free_memory(CPU) == 5000 * 1024
    files.clear()
    assert free_memory(CPU) == float("inf")


# ---- revisions and subfolders


@pytest.mark.parametrize("inside", ["revision", "subfolder"])
def test_one_id_in_two_revisions_or_subfolders_is_two_models(inside, tmp_path, monkeypatch):
    """A cache as the hub's library lays it out: no network is asked."""
    repo = tmp_path / "models--some--model"
    for seed, name in enumerate(("early", "late"), 1):
        commit = str(seed) * 40 if inside == "revision" else "1" * 40
        save(repo / "snapshots" / commit / ("" if inside == "revision" else name), seed=seed)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / (name if inside == "revision" else "main")).write_text(commit)
    options = {"cache_dir": str(tmp_path), "device": "cpu"}
    pair = load_pair("some/model", "some/model", **{inside: ("late", "early")}, **options)
    for model, seed in ((pair.expert, 2), (pair.amateur, 1)):
        torch.testing.assert_close(logits(model), logits(tiny_model("llama", seed=seed)))
    assert pair.names["expert"] == ("some/model@late" if inside == "revision" else "some/model/late")
    same = load_pair("some/model", "some/model", **{inside: "early"}, **options)
    assert same.expert is same.amateur
    with pytest.raises(ValueError, match=f"{inside}=.* one each for expert and amateur"):
        load_pair("some/model", "some/model", **{inside: ("a", "b", "c")}, **options)
    with pytest.raises(TypeError, match=f"{inside}=.* must be a name"):
        load_pair("some/model", "some/model", **{inside: 3}, **options)
    with pytest.raises(OSError, match="not in the cache|could not be loaded"):
        load_expert("some/model", **{inside: "never"}, **options)


def test_a_subfolder_of_a_folder_and_an_embedded_amateur(tmp_path):
    save(tmp_path / "inner", seed=3)
    assert load_expert(tmp_path, subfolder="inner", device="cpu").expert.config.vocab_size == 97
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_expert(tmp_path, device="cpu")
    assert load_pair("expert", "early", revision="main").names["amateur"] == "embedded early"


# ---- missing weights, context limits


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_missing_head_is_named(family, tmp_path):
    folder = save(tmp_path / "m", family, tie_word_embeddings=False)
    weights = load_file(f"{folder}/model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights for 'lm_head.weight'"):
        load_expert(folder, device="cpu")
    assert load_expert(save(tmp_path / "tied", family, tie_word_embeddings=True), device="cpu").vocab_size == 97


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        (None, 256),
        (dict(rope_type="yarn", factor=4.0), 1024),
        (dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=256), 1024),  # as Qwen documents it
        (dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64), 256),  # as DeepSeek writes it
        (dict(rope_type="linear", factor=4.0), 1024),
        (dict(rope_type="dynamic", factor=2.0), 256),
        (
            dict(
                rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
            256,
        ),
        (
            dict(
                rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=64
            ),
            256,
        ),
    ],
)  # fmt: skip
def test_context_limits_respect_rope_scaling(rope, limit, tmp_path):
    model = tiny_model("llama", rope_parameters=rope and {"rope_theta": 1e4, **rope})
    model.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    pair = load_expert(tmp_path, device="cpu")
    assert CachedLM(pair.expert).max_positions == limit and f"up to {limit} tokens" in pair.describe()


def test_a_negative_limit_is_none():
    xlnet = hf.XLNetLMHeadModel(hf.XLNetConfig(vocab_size=97, d_model=16, n_layer=1, n_head=2, d_inner=16)).eval()
    assert context_limit(xlnet) is None
