"""A language model of the transformers library fine-tuned in place, in bfloat16, without a second copy of it.

The module is adopted: its parameters become views of one store, and so its forward pass reads what is perturbed in
place. `mezo` perturbs by one seed to both sides and moves by the difference of two losses (Malladi et al., *Fine-Tuning
Language Models with Just Forward Passes*, 2023). `at-scale` gives thirty seeds a turn each on the one model, and moves
by their normalised losses (Qiu et al., *Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning*,
2025). In both all noise is made again from its seed, and taken back to the bit.

Without a checkpoint it is a small Llama with random weights, which reads bytes; the text is Python's own manual.

    python examples/mezo_transformers.py [--scheme mezo|at-scale] [--steps 400] [--checkpoint FOLDER] [--out FOLDER]

Needs `pip install 'flatstore[llm]'`.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
import transformers

import flatstore as fs
from flatstore import es

MODEL = transformers.LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=None,
)
SCALE, BATCH, LENGTH = 0.004, 32, 64


def a_model(checkpoint):
    """A causal language model in bfloat16, and the text in its tokens."""
    text = "\n".join(topics.values())
    if checkpoint is None:
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(MODEL, dtype=torch.bfloat16)
        return model, np.frombuffer(text.encode(), np.uint8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    return model, np.array(tokenizer(text)["input_ids"])


def loss_of(model, tokens):
    """A function of a number that returns the model's loss on the batch of that number."""

    @torch.no_grad()
    def loss(number):
        starts = np.random.default_rng(number).integers(0, len(tokens) - LENGTH, BATCH)
        batch = torch.from_numpy(tokens[starts[:, None] + np.arange(LENGTH)].astype(np.int64))
        return model(input_ids=batch, labels=batch, use_cache=False).loss.item()

    return loss


def mezo(store, noise, loss, steps):
    """Yield the loss before each step of MeZO."""
    moves = es.mezo(store, lambda _params, step: -loss(step), seed=0, noise=noise, rate=150.0, steps=steps)
    return (-move.mean for move in moves)


def at_scale(store, noise, loss, steps, seeds=30):
    """Yield the mean loss of the perturbed models before each step, which takes as many forward passes as seeds."""
    for step in range(steps):
        keys, losses = fs.seeds((0, step), seeds), []
        for key in keys.tolist():
            with es.perturbed(store, noise, key):
                losses.append(loss(step))
        z = (np.mean(losses) - losses) / (np.std(losses) + 1e-8)
        es.update(store, noise, keys, 8 * z / seeds)
        yield np.mean(losses)


def main():
    """Fine-tune, save, and load what was saved."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scheme", choices=["mezo", "at-scale"], default="mezo")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("evolved-llm"))
    arguments = parser.parse_args()

    model, tokens = a_model(arguments.checkpoint)
    model.eval()
    store = fs.adopt(model)
    noise = fs.Normal(SCALE, bound=8)
    es.snap(store, noise)
    loss = loss_of(model, tokens)
    held_out = [loss((1, i)) for i in range(8)]
    print(f"{store.layout.size:,} parameters, loss {np.mean(held_out):.3f}")
    run = (mezo if arguments.scheme == "mezo" else at_scale)(store, noise, loss, arguments.steps)
    for step, found in enumerate(run):
        if step % max(1, arguments.steps // 10) == 0:
            print(f"step {step}: loss {found:.3f}")
    held_out = [loss((1, i)) for i in range(8)]
    print(f"after {arguments.steps} steps: loss {np.mean(held_out):.3f}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(arguments.out)
    fs.save(arguments.out / "model.safetensors", store)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(arguments.out, dtype=torch.bfloat16)
    same = all(torch.equal(x, y) for x, y in zip(model.parameters(), loaded.parameters(), strict=True))
    print(f"{arguments.out}: loaded by transformers, {'the same bits' if same else 'OTHER BITS'}")


if __name__ == "__main__":
    main()
