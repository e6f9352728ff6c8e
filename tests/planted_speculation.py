"""Mistakes planted into assignment 05: (the solution's grade_id, the name the hint must carry, the cell)."""

ASSIGNMENT = "05_speculative"

_RULE = (
    "def my_rule(p, q):",
    "    chance = torch.where(q > 0, p / q, 1.0).clamp(max=1.0)",
    "    rest = (p - q).clamp(min=0)",
    "    total = rest.sum(-1, keepdim=True)",
    "    return chance, torch.where(total > 0, rest / total, p)",
)
_DRAFT = (
    "def my_draft(model, ids, gamma, temperature, uniforms):",
    "    tokens, laws = [], []",
    "    for u in uniforms:",
    "        logits = model(ids).logits[0, -1]",
    "        law = (logits / (temperature or 1.0)).softmax(-1)",
    "        if temperature == 0:",
    "            law = torch.eye(len(logits))[logits.argmax()]",
    "        tokens.append(draw(law, u))",
    "        laws.append(law)",
    "        ids = torch.cat([ids, torch.tensor([tokens[-1:]])], dim=1)",
    "    return tokens, torch.stack(laws)",
)
_VERIFY = (
    "def my_verify(p, q, drafted, uniforms):",
    "    chance, rest = my_rule(p[:-1], q)",
    "    new = []",
    "    for k, token in enumerate(drafted):",
    "        if uniforms[k] >= chance[k, token]:",
    "            return [*new, draw(rest[k], uniforms[-1])]",
    "        new.append(token)",
    "    return [*new, draw(p[-1], uniforms[-1])]",
)
_LENGTH = (
    "def my_length(rates, cost, wide):",
    "    def speed(n):",
    "        tokens = 1 + sum(math.prod(rates[:k]) for k in range(1, n + 1))",
    "        return tokens / (n * cost + wide) if n else 1.0",
    "    return max(range(len(rates) + 1), key=lambda n: speed(n) - 1e-9 * n)",
)
_REWIND = (
    "def my_rewind(drafted, accepted, next_token):",
    "    gone = len(drafted) - accepted",
    "    reads = [next_token] if gone else [drafted[-1], next_token]",
    "    return gone, max(0, gone - 1), reads",
)
_LAWS = (
    "def my_laws(expert_logits, amateur_logits, alpha, strength, temperature):",
    "    keep = expert_logits >= expert_logits.max(-1, keepdim=True).values + math.log(alpha)",
    "    scores = expert_logits.log_softmax(-1) - strength * amateur_logits.log_softmax(-1)",
    "    both = scores.masked_fill(~keep, -math.inf), amateur_logits",
    "    if temperature == 0:",
    "        p, q = (torch.eye(x.shape[-1])[x.argmax(-1)] for x in both)",
    "    else:",
    "        p, q = ((x / temperature).softmax(-1) for x in both)",
    "    return p, q",
)


def _bent(lines, old, new):
    """The right cell with one thing wrong."""
    source = "\n".join(lines)
    assert source.count(old) >= 1, old
    return source.replace(old, new)


PLANTED = [
    ("rule", "the residual is not renormalised", _bent(_RULE, "rest / total", "rest")),
    (
        "rule",
        "p = q decided for the whole batch",
        _bent(_RULE, "torch.where(total > 0, rest / total, p)", "p if torch.equal(p, q) else rest / total"),
    ),
    (
        "rule",
        "p and q exchanged",
        _bent(_RULE, "    chance", "    p, q = q, p\n    chance").replace("total, p)", "total, q)"),
    ),
    ("rule", "the absolute difference", _bent(_RULE, "(p - q).clamp(min=0)", "(p - q).abs()")),
    ("rule", "q / p instead of p / q", _bent(_RULE, "q > 0, p / q", "p > 0, q / p")),
    ("rule", "0 divided by 0", _bent(_RULE, "torch.where(total > 0, rest / total, p)", "rest / total")),
    (
        "rule",
        "one sum for the whole batch",
        _bent(_RULE, "rest.sum(-1, keepdim=True)", "rest.sum()"),
    ),
    (
        "draft",
        "argmax draft with q of another law",
        _bent(_DRAFT, "draw(law, u)", "int(logits.argmax())"),
    ),
    (
        "draft",
        "argmax draft with q of another law",
        _bent(_DRAFT, "laws.append(law)", "laws.append((logits / (temperature or 1.0)).softmax(-1))"),
    ),
    (
        "draft",
        "dividing by temperature zero",
        _bent(_DRAFT, "(temperature or 1.0)", "temperature").replace("if temperature == 0", "if False"),
    ),
    ("draft", "the first number for every draft", _bent(_DRAFT, "draw(law, u)", "draw(law, uniforms[0])")),
    ("draft", "draw(law, uniforms[k])", _bent(_DRAFT, "draw(law, u)", "int(torch.multinomial(law, 1))")),
    ("draft", "item 2: a tensor is asked for, this is list", _bent(_DRAFT, "torch.stack(laws)", "laws")),
    ("draft", "which position is about the next token", _bent(_DRAFT, ".logits[0, -1]", ".logits[0]")),
    (
        "draft",
        "q without the temperature",
        _bent(_DRAFT, "laws.append(law)", "laws.append(law if temperature == 0 else logits.softmax(-1))"),
    ),
    ("draft", "the draft does not read its own tokens", _bent(_DRAFT, "ids = torch.cat", "more = torch.cat")),
    ("verify", "the bonus token forgotten", _bent(_VERIFY, "return [*new, draw(p[-1], uniforms[-1])]", "return new")),
    (
        "verify",
        "continuing after the first rejection",
        _bent(_VERIFY, "return [*new, draw(rest[k], uniforms[-1])]", "token = draw(rest[k], uniforms[-1])"),
    ),
    (
        "verify",
        "the number of the rejected draft used again",
        _bent(_VERIFY, "draw(rest[k], uniforms[-1])", "draw(rest[k], uniforms[k])"),
    ),
    ("verify", "p again after a rejection", _bent(_VERIFY, "draw(rest[k]", "draw(p[k]")),
    ("verify", "the bonus from the law before the last draft", _bent(_VERIFY, "draw(p[-1]", "draw(p[-2]")),
    ("length", "the bonus token forgotten", _bent(_LENGTH, "1 + sum", "sum")),
    (
        "length",
        "stops at the first decline",
        "def my_length(rates, cost, wide):\n"
        "    best, speed, tokens, reach = 0, 1.0, 1.0, 1.0\n"
        "    for n, rate in enumerate(rates, start=1):\n"
        "        reach *= rate\n"
        "        tokens += reach\n"
        "        if tokens / (n * cost + wide) <= speed + 1e-9:\n"
        "            return best\n"
        "        best, speed = n, tokens / (n * cost + wide)\n"
        "    return best",
    ),
    ("length", "the wide pass paid for every column", _bent(_LENGTH, "cost + wide", "cost + (n + 1) * wide")),
    (
        "length",
        "the last rate for all drafts",
        _bent(_LENGTH, "sum(math.prod(rates[:k]) for k in range(1, n + 1))", "n * rates[n - 1]")
        .replace("return tokens", "return tokens")
        .replace("tokens = 1 + n * rates[n - 1]", "tokens = 1 + n * rates[n - 1] if n else 1"),
    ),
    ("length", "one more than the best length", _bent(_LENGTH, "return max(", "return 1 + max(")),
    ("length", "the rates are added", _bent(_LENGTH, "math.prod(rates[:k])", "rates[k - 1]")),
    ("length", "plain decoding pays the wide pass", _bent(_LENGTH, " if n else 1.0", "")),
    ("rewind", "off by one: the draft's cache like the target's", _bent(_REWIND, "max(0, gone - 1)", "gone")),
    ("rewind", "the draft's own last token forgotten", _bent(_REWIND, "[drafted[-1], next_token]", "[next_token]")),
    ("rewind", "a negative number of tokens dropped", _bent(_REWIND, "max(0, gone - 1)", "gone - 1")),
    (
        "laws",
        "the mask on the amateur",
        _bent(_LAWS, "expert_logits >= expert_logits.max", "amateur_logits >= amateur_logits.max"),
    ),
    ("laws", "the expert's law as the target", _bent(_LAWS, " - strength * amateur_logits.log_softmax(-1)", "")),
    ("laws", "q and p in the wrong order", _bent(_LAWS, "return p, q", "return q, p")),
    ("laws", "q is the contrast", _bent(_LAWS, "in both", "in both[:1] * 2")),
    ("laws", "masked tokens get the score 0", _bent(_LAWS, "-math.inf", "0.0")),
    ("laws", "dividing by temperature zero", _bent(_LAWS, "temperature == 0", "temperature is None")),
    # right on every example of the visible check: the hidden tests must catch it
    (
        "rewind",
        None,
        "def my_rewind(drafted, accepted, next_token):\n"
        "    return {(3, 0): (3, 2, [8]), (3, 1): (2, 1, [8]), (3, 2): (1, 0, [8]), (3, 3): (0, 0, [7, 8]),\n"
        "            (1, 0): (1, 0, [8]), (1, 1): (0, 0, [5, 8])}.get((len(drafted), accepted))",
    ),
]
