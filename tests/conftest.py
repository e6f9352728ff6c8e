"""What every test may use. No test reaches a network, and models are tiny or embedded."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")
CHARACTERS = [chr(c) for c in range(32, 126)]  # with the three above: 97 ids, as tiny_model has


def character_tokenizer(*, swap=None, extra=(), chat_template=None, add_bos=False):
    """One id per ASCII character. `swap` exchanges two characters' ids; `extra` adds special tokens at the end."""
    vocab = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    if swap:
        a, b = swap
        vocab[a], vocab[b] = vocab[b], vocab[a]
    core = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    if add_bos:
        from tokenizers.processors import TemplateProcessing

        core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
    if extra:
        tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture
def tokenizer():
    return character_tokenizer()


@pytest.fixture(autouse=True)
def _no_global_state():
    """No test, and so no function it calls, may leave another number of threads or grad mode behind."""
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)


def pytest_terminal_summary(terminalreporter):
    """Print what tests recorded as a "table", also from the workers of xdist: the classroom shows its results."""
    passed = terminalreporter.stats.get("passed", [])
    tables = [value for report in passed for name, value in report.user_properties if name == "table"]
    if tables:
        terminalreporter.section("tables")
        terminalreporter.write_line("\n".join(tables))
