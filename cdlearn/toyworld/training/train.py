"""Trains the embedded pair: `python -m cdlearn.toyworld.training.train --out FOLDER`.

Writes three ordinary Hugging Face folders: `expert` (deep and narrow), `early` (the expert after a third of its
training) and `amateur` (one layer). The corpus is drawn on the fly, step by step, from the seed, so a killed run goes
on from its last checkpoint with the very documents it would have seen.
"""

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from cdlearn.toyworld import world
from cdlearn.toyworld.training.tokenizer import build_tokenizer

WINDOW, BATCH = 256, 6  # tokens in a row, rows in a step
SAVE_EVERY = 250  # steps between checkpoints
PROMPT_TARGETS = 0.25  # share of the documents whose prompt is learnt too
IGNORED = -100  # no target


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run besides the corpus."""

    layers: int
    width: int
    hidden: int
    heads: int
    steps: int
    learning_rate: float = 5e-3  # of the matrices (Muon); vectors and embeddings take half of it (AdamW)
    auxiliary: float = 0.2  # weight of the last early exit's loss; rises from 0.03 with the square of depth; 0: none
    seed: int = 0


EXPERT = Recipe(layers=10, width=96, hidden=256, heads=4, steps=8000)
AMATEUR = Recipe(layers=1, width=32, hidden=96, heads=2, steps=600, auxiliary=0.0, seed=1)


def build_model(recipe: Recipe, tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    specials = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"hidden_size": recipe.width, "intermediate_size": recipe.hidden, "num_hidden_layers": recipe.layers}
    sizes |= {"num_attention_heads": recipe.heads, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **sizes, **specials))
    model.generation_config = GenerationConfig(**specials)
    return model


def written(document: world.Document, tokenizer, rng: random.Random) -> tuple[str, str]:
    """What is asked and what follows, with special tokens: raw, or through the chat template now and then."""
    if not document.prompt or rng.random() >= world.CHAT:
        return tokenizer.bos_token + document.prompt, document.continuation + tokenizer.eos_token
    # rendered by hand: the template engine would be half of the cost of a training step
    system = rng.choice(["You tell stories.", "Answer the question."]) if rng.random() < 0.15 else None
    head = f"<|system|>{system}" if system else ""
    head = f"{tokenizer.bos_token}{head}<|user|>{document.prompt}<|assistant|>"
    return head, document.continuation + tokenizer.eos_token


def batch(tokenizer, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows of one step: ids and targets, [BATCH, WINDOW]; whole documents side by side, padding at the end.

    Most prompts are no targets: who gives what to whom is drawn at random, and learning to guess it is mostly noise.
    """
    rng = random.Random(f"{seed}/{step}")
    rows: list[tuple[list[int], list[int]]] = [([], []) for _ in range(BATCH)]
    open_rows = set(range(BATCH))
    while open_rows:
        texts = [written(world.document(rng), tokenizer, rng) for _ in range(16)]
        heads, tails = (tokenizer(list(part), add_special_tokens=False).input_ids for part in zip(*texts, strict=True))
        for head, tail in zip(heads, tails, strict=True):
            ids, prompt_counts = head + tail, rng.random() < PROMPT_TARGETS
            fitting = [r for r in open_rows if len(rows[r][0]) + len(ids) <= WINDOW]
            if fitting:
                row = rows[max(fitting, key=lambda r: len(rows[r][0]))]
                row[0].extend(ids)
                row[1].extend(ids if prompt_counts else [IGNORED] * len(head) + tail)
            else:  # no room anywhere: the fullest row is done
                open_rows.discard(max(open_rows, key=lambda r: len(rows[r][0])))
                if not open_rows:
                    break
    return (
        torch.tensor([ids + [tokenizer.pad_token_id] * (WINDOW - len(ids)) for ids, _ in rows]),
        torch.tensor([targets + [IGNORED] * (WINDOW - len(targets)) for _, targets in rows]),
    )


def own_document(ids: torch.Tensor, tokenizer) -> dict[str, torch.Tensor]:
    """What keeps the documents of a window apart: an attention mask [B, 1, T, T] and positions that start anew.

    Without it a window offers many objects, colours and places to copy, most of them from somebody else's story.
    """
    starts = ids == tokenizer.bos_token_id
    document = starts.cumsum(1)  # (B, T)
    columns = torch.arange(ids.shape[1], device=ids.device)
    same = document[:, :, None] == document[:, None, :]
    begin = torch.where(starts, columns, 0).cummax(1).values
    return {"attention_mask": (same & (columns[:, None] >= columns))[:, None], "position_ids": columns - begin}


def next_token_loss(model, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    wanted = targets[:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][wanted])  # (targets, V)
    return F.cross_entropy(logits, targets[:, 1:][wanted])


def losses(model, tokenizer, ids, targets, recipe: Recipe, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss to minimise and, apart, that of the final layer.

    Early exits speak through the final norm and the shared head (LayerSkip, arXiv 2404.16710); two of them, drawn anew
    at every step, stand for all.
    """
    early = recipe.auxiliary > 0 and recipe.layers > 2
    outputs = model.model(ids, **own_document(ids, tokenizer), output_hidden_states=early, use_cache=False)
    final = next_token_loss(model, outputs.last_hidden_state, targets)
    total = final
    if early:
        exits = range(1, recipe.layers)
        for layer in random.Random(f"exits/{recipe.seed}/{step}").sample(exits, 2):
            weight = 0.03 + (recipe.auxiliary - 0.03) * ((layer - 1) / max(1, recipe.layers - 2)) ** 2
            hidden = model.model.norm(outputs.hidden_states[layer])
            total = total + weight * len(exits) / 2 * next_token_loss(model, hidden, targets)
    return total, final.detach()


def optimizers(model, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (torch's own; learning rates on AdamW's scale), AdamW for all the rest."""
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"Training needs torch 2.9 or newer (torch.optim.Muon); this is {torch.__version__}.")
    layers = dict(model.model.layers.named_parameters())
    matrices = [p for p in layers.values() if p.dim() == 2]
    vectors = [p for p in layers.values() if p.dim() < 2] + list(model.model.norm.parameters())
    embedding = [model.get_input_embeddings().weight]  # tied: the head too
    others = [{"params": embedding, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.learning_rate / 2, betas=(0.9, 0.98)),
    ]


def schedule(recipe: Recipe, step: int) -> float:
    """The share of the peak learning rate: linear warm-up, then half a cosine down to zero."""
    warm = max(1, min(200, recipe.steps // 10))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))


@torch.no_grad()
def held_out_loss(model, tokenizer, batches: int = 16) -> float:
    """Nats per target token on documents drawn from a seed that training never uses."""
    model.eval()
    total = 0.0
    for k in range(batches):
        ids, targets = (part.to(model.device) for part in batch(tokenizer, seed=-1, step=k))
        hidden = model.model(ids, **own_document(ids, tokenizer), use_cache=False).last_hidden_state
        total += float(next_token_loss(model, hidden, targets))
    return total / batches


def train(recipe: Recipe, tokenizer, folder: Path, *, early: Path | None = None, device="cpu", progress=None) -> dict:
    """Trains one model into `folder`, or goes on from its checkpoint.pt; `early`: where it lies after a third, too."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    model = build_model(recipe, tokenizer).to(device)
    parts = optimizers(model, recipe)
    state = {"step": 0, "seconds": 0.0}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        if state["recipe"] != asdict(recipe):
            raise ValueError(f"{checkpoint} belongs to {state['recipe']}, another recipe: choose another --out.")
        model.load_state_dict(state["model"])
        for part, saved in zip(parts, state["optimizers"], strict=True):
            part.load_state_dict(saved)
    model.train()
    bar = tqdm(range(state["step"], recipe.steps), desc=folder.name, mininterval=5, disable=progress is False)
    clock = time.time() - state["seconds"]
    for step in bar:
        for group in (group for part in parts for group in part.param_groups):
            group["lr"] = group.setdefault("peak", group["lr"]) * schedule(recipe, step)
        ids, targets = (part.to(device) for part in batch(tokenizer, recipe.seed, step))
        loss, final = losses(model, tokenizer, ids, targets, recipe, step)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in parts:
            part.step()
        bar.set_postfix(loss=f"{float(final):.3f}", refresh=False)
        if early is not None and step + 1 == recipe.steps // 3:
            model.save_pretrained(early)
            tokenizer.save_pretrained(early)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.steps:
            state = {"model": model.state_dict(), "optimizers": [part.state_dict() for part in parts]}
            state |= {"step": step + 1, "recipe": asdict(recipe), "seconds": time.time() - clock}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)  # never half a checkpoint
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    entry = {"recipe": asdict(recipe), "parameters": sum(p.numel() for p in model.parameters())}
    entry |= {"tokens": recipe.steps * BATCH * WINDOW, "seconds": round(state["seconds"])}
    return entry | {"loss": held_out_loss(model, tokenizer)}


def main(argv: list[str] | None = None) -> None:
    about = __doc__.split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m cdlearn.toyworld.training.train", description=about)
    parser.add_argument("--out", type=Path, required=True, help="folder for expert/, early/ and amateur/")
    parser.add_argument("--seed", type=int, default=0, help="another seed: another corpus, another start")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the steps (0.3: a quick, weaker pair)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if not 0 < args.budget <= 1:
        parser.error(f"--budget is {args.budget}; it is a share of the full training, above 0 and at most 1.")
    tokenizer = build_tokenizer()
    for name, recipe in {"amateur": AMATEUR, "expert": EXPERT}.items():
        steps = max(1, round(recipe.steps * args.budget))
        recipe = replace(recipe, steps=steps, seed=recipe.seed + 100 * args.seed)
        early = args.out / "early" if name == "expert" else None
        entry = train(recipe, tokenizer, args.out / name, early=early, device=args.device)
        (args.out / f"{name}.log.json").write_text(json.dumps(entry, indent=1) + "\n")


if __name__ == "__main__":
    main()
