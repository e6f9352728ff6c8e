"""What made the shipped pair: the tokenizer, the training, the model card."""
