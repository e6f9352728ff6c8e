"""An expert, an amateur and the tokenizer they share: embedded, from the hub, from folders, or as objects."""

from cdlearn.pairs.pair import Pair, common_vocab_size, load_expert, load_pair

__all__ = ["Pair", "common_vocab_size", "load_expert", "load_pair"]
