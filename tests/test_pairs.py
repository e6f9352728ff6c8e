"""Loading pairs: every family from disk, the tokenizer agreement, chat templates, and every way it can go wrong."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import character_tokenizer
from tiny import ARCHITECTURES, tiny_model
from transformers import AutoModelForCausalLM, BertConfig, BertModel, BitsAndBytesConfig, LlamaForSequenceClassification

from cdlearn import Contrast, generate
from cdlearn.pairs.loading import EMBEDDED
from cdlearn.pairs.pair import Pair, common_vocab_size, load_expert, load_pair

CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"  # noqa: E501
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}[user]{{ messages[0].content }}"  # noqa: E501
DROPS_SYSTEM = "{% for m in messages if m.role == 'user' %}[user]{{ m.content }}{% endfor %}"


def save(folder, family="llama", *, tokenizer=None, **options):
    """Save a tiny checkpoint as a folder and return its path as a string."""
    model = tiny_model(family, **options)
    model.save_pretrained(folder)
    (tokenizer or character_tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def llama(tmp_path):
    return save(tmp_path / "llama")


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_loads_from_disk_with_its_own_weights(family, tmp_path):
    big = save(tmp_path / "big", family, seed=1)
    small = save(tmp_path / "small", family, seed=2)
    pair = load_pair(big, small, device="cpu")
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        for model, seed in ((pair.expert, 1), (pair.amateur, 2)):
            expected = tiny_model(family, seed=seed)(ids).logits
            torch.testing.assert_close(model(ids).logits, expected)
            assert not model.training and model.dtype == torch.float32
    assert pair.vocab_size == 97
    assert pair.tokenizer("Hi").input_ids == character_tokenizer()("Hi").input_ids


def test_differing_padding_rows_are_trimmed_to_the_real_vocabulary(tmp_path):
    pair = load_pair(
        save(tmp_path / "a", "qwen2", vocab_size=128), save(tmp_path / "b", "qwen2", vocab_size=112), device="cpu"
    )
    assert pair.vocab_size == 97
    assert pair.expert.config.vocab_size == 128 and pair.amateur.config.vocab_size == 112


def test_added_tokens_of_one_side_are_trimmed_unless_the_expert_ends_with_them(tmp_path):
    more = character_tokenizer(extra=["<|end|>"])
    assert common_vocab_size(more, character_tokenizer()) == 97
    assert common_vocab_size(more, more) == 98
    big = save(tmp_path / "a", tokenizer=more, vocab_size=98)
    small = save(tmp_path / "b")
    assert load_pair(big, small, device="cpu").vocab_size == 97
    model = tiny_model("llama", vocab_size=98)
    model.generation_config.eos_token_id = 97
    model.save_pretrained(big)
    with pytest.raises(ValueError, match="ends its texts with token 97"):
        load_pair(big, small, device="cpu")


def test_disagreeing_tokenizers_name_the_first_differing_token(tmp_path):
    big = save(tmp_path / "a")
    small = save(tmp_path / "b", tokenizer=character_tokenizer(swap=("b", "x")))
    where = character_tokenizer().convert_tokens_to_ids("b")
    with pytest.raises(ValueError, match=rf"token {where} is 'b' for the expert and 'x' .*TextSpace"):
        load_pair(big, small, device="cpu")


def test_one_folder_twice_is_loaded_once(llama):
    pair = load_pair(llama, llama, device="cpu")
    assert pair.expert is pair.amateur


def test_model_objects_are_taken_as_they_are(llama, tokenizer):
    expert, amateur = tiny_model("llama", seed=1), tiny_model("gpt2", seed=2)
    pair = load_pair(expert, amateur, tokenizer=tokenizer)
    assert pair.expert is expert and pair.amateur is amateur and pair.tokenizer is tokenizer
    with pytest.raises(ValueError, match="amateur is in training mode"):  # nor is a model changed
        load_pair(expert, tiny_model("gpt2").train())
    assert load_pair(expert, amateur).tokenizer is None
    assert load_pair(expert, llama, device="cpu").tokenizer is not None
    with pytest.raises(ValueError, match="97 tokens and amateur 99"):
        load_pair(expert, tiny_model("llama", vocab_size=99))


def test_dtype_and_device_for_each_role(llama, tmp_path):
    pair = load_pair(llama, save(tmp_path / "b"), device=("cpu", torch.device("cpu")), dtype=("bfloat16", "auto"))
    assert pair.expert.dtype == torch.bfloat16
    assert pair.amateur.dtype == (torch.float32)
    assert load_expert(llama, device="cpu", dtype=torch.float64).expert.dtype == torch.float64
    assert load_expert(llama, device="cpu", torch_dtype=torch.float64).expert.dtype == torch.float64


def test_a_model_spread_over_places_decodes_the_same(llama, tmp_path):
    """device_map goes to transformers and accelerate: here half of the layers wait on the disk."""
    small = save(tmp_path / "small", num_hidden_layers=1, seed=2)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    whole = load_pair(llama, small, device="cpu")
    expert = load_expert(llama, device_map=places, offload_folder=str(tmp_path / "offload"), dtype="float32").expert
    assert expert.hf_device_map["model.layers.2"] == "disk"
    texts = [
        generate(Contrast(model, whole.amateur), "Hi", tokenizer=whole.tokenizer, max_new_tokens=12, eos_token_ids=())
        for model in (whole.expert, expert)
    ]
    assert texts[0].token_ids == texts[1].token_ids


def test_what_belongs_to_from_pretrained_reaches_it(llama, monkeypatch):
    seen = []

    def spy(name, **options):
        seen.append(options)
        return original(name, **{k: v for k, v in options.items() if k != "quantization_config"})

    original = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    config = BitsAndBytesConfig(load_in_8bit=True)
    load_pair(llama, llama, device_map="cpu", dtype=("float32", "bfloat16"), quantization_config=config)
    assert [options["quantization_config"] for options in seen] == [config, config]
    assert [options["dtype"] for options in seen] == [torch.float32, torch.bfloat16]
    assert all(options["device_map"] == "cpu" and options["use_safetensors"] for options in seen)


def test_load_expert_needs_no_amateur(llama):
    pair = load_expert(llama, device="cpu")
    assert pair.amateur is None and pair.vocab_size == 97
    assert "amateur" not in repr(pair) + pair.describe()


def test_repr_and_describe_are_short_and_say_what_matters(tmp_path):
    pair = load_pair(save(tmp_path / "big"), save(tmp_path / "small", "gpt2"), device="cpu")
    assert str(tmp_path) not in repr(pair) + pair.describe()
    for word in ("big", "small", "llama", "gpt2", "97"):
        assert word in repr(pair), word
    for word in ("float32", "cpu", "3 layers x 32", "no chat template"):
        assert word in pair.describe(), word


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in KB on Linux only")
def test_embedded_pair_is_offline_small_and_leaves_the_seed_alone():
    code = (
        "import cdlearn, torch, resource\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3\n"
        "before, state = peak(), torch.get_rng_state()\n"
        "pair = cdlearn.load_pair()\n"
        "print(peak() - before)\n"
        "assert torch.equal(state, torch.get_rng_state())\n"
    )
    env = dict(os.environ, HF_HUB_OFFLINE="1", HF_HUB_CACHE="/nonexistent", OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "", "loading the embedded pair must be silent"
    assert float(done.stdout) < 100


@pytest.mark.parametrize("name", ["expert", "amateur", "early"])
def test_embedded_models_share_one_tokenizer_with_a_chat_template(name):
    tokenizer = load_expert(name).tokenizer
    assert tokenizer.get_vocab() == load_expert("expert").tokenizer.get_vocab()
    assert tokenizer.chat_template
    for text in ("Ada had a red ball.", "", "emoji 🙂 and ünïcode", "tabs\tand\nlines"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_embedded_names_and_their_sizes():
    pair = load_pair()
    early = load_pair(amateur="early")
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in (("e", pair.expert), ("a", pair.amateur))}
    assert count["e"] >= 20 * count["a"]
    assert (
        "early" in early.describe() and early.amateur.config.num_hidden_layers == pair.expert.config.num_hidden_layers
    )
    first = {n: p for n, p in early.amateur.named_parameters()}
    assert any(not torch.equal(p, first[n]) for n, p in pair.expert.named_parameters())
    assert sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()) <= 20e6


def pair_with(template, **options):
    tokenizer = character_tokenizer(chat_template=template, **options)
    return Pair(tiny_model("llama"), None, tokenizer, 97)


def test_prompt_uses_the_chat_template_if_there_is_one():
    pair = pair_with(CHAT)
    assert pair.prompt("Hi") == "<s>[user]Hi[assistant]"
    assert pair.prompt("Hi", system="Be brief.") == "<s>[system]Be brief.[user]Hi[assistant]"
    assert pair.prompt("Hi", chat=False) == "Hi"
    assert pair_with(None).prompt("Hi") == "Hi"


def test_prompt_leaves_one_bos_where_tokenizing_adds_one():
    pair = pair_with(CHAT, add_bos=True)
    assert pair.tokenizer(pair.prompt("Hi")).input_ids.count(1) == 1
    turns = [{"role": "user", "content": "Hi"}]
    expected = pair.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert pair.tokenizer(pair.prompt("Hi")).input_ids == expected


def test_prompt_passes_template_options():
    pair = pair_with("{% if enable_thinking %}think{% endif %}{{ messages[0].content }}")
    assert pair.prompt("Hi", enable_thinking=True) == "thinkHi"


@pytest.mark.parametrize(
    ("template", "chat", "says"),
    [
        (NO_SYSTEM, True, "failed .*System role not supported.*leave out system="),
        (DROPS_SYSTEM, True, "drops the system prompt"),
        (None, True, "no chat template"),
        (CHAT, False, "chat=False"),
    ],
)
def test_a_system_prompt_is_never_lost_silently(template, chat, says):
    with pytest.raises(ValueError, match=says):
        pair_with(template).prompt("Hi", system="Be brief.", chat=chat)


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Ha"}]


def test_prompt_takes_the_turns_of_a_conversation():
    pair = pair_with(CHAT)
    assert pair.prompt(TURNS) == "<s>[user]Hi[assistant]Ho[user]Ha[assistant]"
    assert pair.prompt(TURNS, system="Be brief.").startswith("<s>[system]Be brief.[user]Hi")
    assert pair.prompt(TURNS[:2], continue_final_message=True) == "<s>[user]Hi[assistant]Ho"
    assert pair.prompt(TURNS[:1]) == pair.prompt("Hi") and len(TURNS) == 3
    with pytest.raises(ValueError, match="hold a system prompt already"):
        pair.prompt([{"role": "system", "content": "A"}, *TURNS], system="B")
    for one, chat, says in ((pair, False, "chat=False was given"), (pair_with(None), True, "no chat template")):
        with pytest.raises(ValueError, match=f"text holds 3 turns, and .*{says}: pass one string"):
            one.prompt(TURNS, chat=chat)
    with pytest.raises(ValueError, match=r"failed \(no\): pass one string"):
        pair_with("{{ raise_exception('no') }}").prompt(TURNS)


def test_prompt_refuses_other_kinds():
    for bad in (["Hi"], [], [{"role": "user"}], [{"role": "user", "content": 3}], {"role": "user", "content": "Hi"}, 7):
        with pytest.raises(TypeError, match=r'text is .*pass a string, or a list of \{"role": "user"'):
            pair_with(CHAT).prompt(bad)
    with pytest.raises(TypeError, match="system is 3"):
        pair_with(CHAT).prompt("Hi", system=3)
    with pytest.raises(ValueError, match="chat template failed"):
        pair_with("{{ raise_exception('no') }}").prompt("Hi")


def test_offline_hub_id_says_file_cache_and_remedy(tmp_path):
    with pytest.raises(OSError) as caught:
        load_pair("someone/big-model", "someone/small-model", cache_dir=str(tmp_path))
    for part in ("someone/big-model", "config.json", "hf download someone/big-model", "load_pair()"):
        assert part in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_mistyped_name_of_the_embedded_models_is_guessed():
    with pytest.raises(OSError, match="did you mean 'expert'"):
        load_expert("expret")


def test_a_folder_with_pickles_only_is_refused(llama, tmp_path):
    os.rename(f"{llama}/model.safetensors", f"{llama}/pytorch_model.bin")
    with pytest.raises(OSError, match="no file named model.safetensors.*save_pretrained"):
        load_pair(llama, llama)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no file named model.safetensors"),
        ("tokenizer*", "its tokenizer .*pass tokenizer="),
    ],
)
def test_missing_files_are_named(llama, tmp_path, missing, says):
    good = save(tmp_path / "good")
    for path in (tmp_path / "llama").glob(missing):
        path.unlink()
    with pytest.raises((OSError, ValueError), match=f"amateur=.*llama.*{says}"):
        load_pair(good, llama, device="cpu")


def test_a_folder_without_tokenizer_works_with_a_given_one(llama, tmp_path, tokenizer):
    for path in (tmp_path / "llama").glob("tokenizer*"):
        path.unlink()
    assert load_pair(llama, llama, device="cpu", tokenizer=tokenizer).tokenizer is tokenizer


def test_truncated_weights_are_an_error_of_one_sentence(llama):
    with open(f"{llama}/model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match="model.safetensors could not be loaded"):
        load_pair(llama, llama, device="cpu")


def test_missing_weights_are_never_left_random(tmp_path):
    config = tiny_model("llama").config
    config.num_labels = 2
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    character_tokenizer().save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="lacks weights for 'lm_head.weight'"):
        load_expert(tmp_path / "classifier", device="cpu")


def test_models_that_are_not_causal_are_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    tiny = T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(tiny).save_pretrained(tmp_path / "t5")
    character_tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="Unrecognized configuration class.*T5Config"):
        load_expert(tmp_path / "t5", device="cpu")
    bert = BertModel(BertConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(TypeError, match="expert is a BertModel: pass"):
        load_expert(bert)


def test_an_unreachable_hub_is_said_at_the_first_try(monkeypatch):
    """The hub's own library would try six times: half a minute for a mistyped name."""
    asked = []

    class Nobody:
        def head(self, url, timeout):
            asked.append(url)
            raise RuntimeError("name resolution failed")

    monkeypatch.setattr("cdlearn.pairs.loading.hub.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("cdlearn.pairs.loading.get_session", Nobody)
    monkeypatch.setattr("cdlearn.pairs.loading.hf_hub_download", lambda *args, **options: asked.append("download"))
    with pytest.raises(OSError, match="some/model.*the hub cannot be reached.*needs no download"):
        load_expert("some/model")
    assert len(asked) == 1 and asked[0].startswith("http")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (dict(expert="./no-such-folder"), FileNotFoundError, "no such folder"),
        (dict(expert="./no-such-folder", amateur="amateur"), FileNotFoundError, "no such folder"),
        (dict(expert="", amateur="amateur"), ValueError, "expert='' is empty"),
        (dict(expert=__file__, amateur="amateur"), ValueError, "is a file"),
        (dict(expert=3, amateur="amateur"), TypeError, "expert must be a hub id.*got int"),
        (dict(expert="someone/big"), ValueError, "amateur is missing.*DoLa"),
        (dict(device="gpu"), ValueError, "device='gpu' cannot be used"),
        (dict(device="cuda:99"), ValueError, "device='cuda:99' cannot be used"),
        (dict(device=3.5), TypeError, "device=3.5 must be"),
        (dict(device=("cpu", "cpu", "cpu")), ValueError, "one each for expert and amateur"),
        (dict(dtype="float33"), ValueError, "dtype='float33'"),
        (dict(dtype="int8"), ValueError, "dtype='int8' .*floating"),
        (dict(dtype=16), TypeError, "dtype=16"),
        (dict(tokenizer=7), TypeError, "tokenizer must be.*got int"),
        (dict(tokenizer="./nothing"), FileNotFoundError, "tokenizer='./nothing'.*no such folder"),
        (dict(trust_remote_code=True), ValueError, "trust_remote_code=True is refused"),
        (dict(use_safetensors=False), ValueError, "use_safetensors=False is refused"),
    ],
)
def test_bad_arguments_are_named(arguments, error, says):
    with pytest.raises(error, match=says) as caught:
        load_pair(**arguments)
    assert len(str(caught.value)) < 400
