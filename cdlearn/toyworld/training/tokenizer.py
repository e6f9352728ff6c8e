"""The tokenizer of the embedded pair: one token per word of the world, one per digit, bytes for everything else."""

import math
import random
from collections import Counter

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cdlearn.toyworld import world

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# a word with its leading space, a single digit with its leading space, punctuation, or white space
PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"


def build_tokenizer(*, size: int = 1024, documents: int = 30_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """A unigram tokenizer over bytes whose pieces are the most frequent words of the corpus.

    At most `size` tokens: specials, 256 bytes, 20 digits (with and without a space), then words by frequency. Any
    text round-trips, because a word outside the vocabulary falls apart into its bytes.
    """
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), to_bytes])
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    for _ in range(documents):
        counts.update(piece for piece, _ in split.pre_tokenize_str(world.document(rng).text))
    specials = [PAD, BOS, EOS, *ROLES]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    digits = [space + str(d) for space in ("", "Ġ") for d in range(10)]
    single = [piece for piece in digits if piece not in alphabet]
    known = {*alphabet, *single}
    common = [(n, w) for w, n in counts.items() if n >= 20 and w not in known]
    words = [w for _, w in sorted(common, key=lambda nw: (-nw[0], nw[1]))]
    words = words[: size - len(specials) - len(alphabet) - len(single)]
    total = counts.total()
    # a whole word always beats its bytes: any score above the sum of two byte scores does
    vocab = [(token, 0.0) for token in specials] + [(byte, -20.0) for byte in alphabet]
    vocab += [(piece, -5.0) for piece in single] + [(word, math.log(counts[word] / total)) for word in words]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=None, byte_fallback=False))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    begin = [(BOS, specials.index(BOS))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=begin)
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "additional_special_tokens": list(ROLES)}
    settings = {"padding_side": "left", "clean_up_tokenization_spaces": False, "model_max_length": 512}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, **settings)
    fast.chat_template = CHAT_TEMPLATE
    return fast
