"""A small world whose rules decide what is true, and the pair of models that was trained on texts about it."""
