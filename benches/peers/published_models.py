"""A published model here and in transformers: tokens, texts, perplexity.

    python benches/peers/published_models.py --binary target/release/specialformer MODEL.gguf

MODEL.gguf is SmolLM2-135M-Instruct, as `cargo xtask fetch smollm2` gets it.
Needs torch, transformers, accelerate and gguf. Exits with 1 if something differs.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees because",
    "The three laws of robotics are",
    "In 1969, astronauts",
    "To make a cup of tea, first",
    "A transformer is a neural network that",
    "The quick brown fox",
    "Q: What is 12 + 30?\nA:",
    "Dear Sir or Madam,\n\nI am writing to",
    "The difference between a list and a tuple in Python is",
    "Photosynthesis is the process by which",
    "She opened the door and saw",
    "SELECT name, COUNT(*) FROM",
    "The best way to learn a language is",
    "Der schnelle braune Fuchs",
    "1, 2, 3, 5, 8, 13,",
    "Rust is a programming language that",
    "Yesterday the weather was",
]
PARAGRAPH = (
    "The transformer has become the standard architecture for language models. It reads a "
    "sequence of tokens, and each layer lets every position gather information from the "
    "positions before it. Training adjusts millions of weights so that the model predicts the "
    "next token well. After training on a large collection of text, the same network can answer "
    "questions, translate sentences and continue stories, although it was only ever asked to "
    "guess what comes next. Small models are less capable than large ones, but they run on an "
    "ordinary computer, and for a narrow task they are often good enough."
)
CONVERSATIONS = [
    [{"role": "user", "content": "What is 17 * 3?"}],
    [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Hello  there\n"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another, with <|im_end|> in it: é 中 \U0001f600"},
    ],
]
TIE = 1e-3


def field(reader, name):
    return reader.fields[name].contents()


def reference_tokenizer(reader):
    tokens = field(reader, "tokenizer.ggml.tokens")
    types = field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # What the pre-type `smollm` means.
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types) if kind == 3]
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    ids = {name: field(reader, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=tokens[ids["bos"]], eos_token=tokens[ids["eos"]]
    )
    tokenizer.chat_template = field(reader, "tokenizer.chat_template")
    return tokenizer


def mixed_text(size):
    """Text of `size` characters: prose, code, numbers, emoji, CJK, runs of blanks."""
    parts = [
        PARAGRAPH,
        "fn main() {\n    let x = 0x1F_u32;\n\tprintln!(\"{x:>08}\");\n}\n",
        "3.14159 2,718,281 1e-12 2024-11-22T18:30:59Z +49 (30) 1234-567\n",
        "\U0001f600\U0001f680\U0001f469‍\U0001f4bb é́ ñ \U0001f1e9\U0001f1ea\n",
        "変換器は系列を読む。 注意機構が情報を集めます。変形金剛 한국어 문장입니다\n",
        "   \n\n\t\t  \r\n      x  y   z\u00a0\u2003w\n\n\n",
        "Straße, naïve façade, Ελληνικά, Русский текст, עברית, العربية\n",
        "I'm you're they'll it's we've he'd DON'T 'S\n",
        "<|im_start|>user\nhi<|im_end|> <|endoftext|> <|not a token|>\n",
    ]
    state, out, length = 1, [], 0
    while length < size:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        part = parts[(state >> 33) % len(parts)]
        start = (state >> 45) % len(part)
        piece = part[start:] if state >> 60 < 8 else part
        out.append(piece)
        length += len(piece.encode())
    return "".join(out)


class Ours:
    def __init__(self, binary, threads, folder):
        self.binary, self.threads, self.folder = binary, threads, folder

    def run(self, *arguments):
        command = [self.binary, *map(str, arguments), "--json", "--threads", str(self.threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        return json.loads(done.stdout)

    def tokens(self, model, text, *more):
        path = self.folder / "text.txt"
        path.write_bytes(text.encode())
        return self.run("tokenize", model, path, *more)

    def perplexity(self, model, text, *more):
        path = self.folder / "text.txt"
        path.write_bytes(text.encode())
        return self.run("perplexity", model, path, *more)["perplexity"]


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def perplexity(model, ids):
    scores = torch.log_softmax(logits(model, ids[:-1]).double(), -1)
    return math.exp(-scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean().item())


def greedy(model, ids, count):
    text, out, cache = ids, [], None
    with torch.no_grad():
        for _ in range(count):
            step = model(torch.tensor([text]), past_key_values=cache, use_cache=True)
            cache, row = step.past_key_values, step.logits[0, -1]
            top = row.topk(2)
            out.append((top.indices[0].item(), (top.values[0] - top.values[1]).item(), top.indices[1].item()))
            text = [out[-1][0]]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--megabytes", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    failures = []

    def report(name, good, what):
        print(f"{'ok  ' if good else 'FAIL'} {name}: {what}", flush=True)
        if not good:
            failures.append(name)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        ours = Ours(options.binary, options.threads, folder)
        reader = gguf.GGUFReader(options.model)
        tokenizer = reference_tokenizer(reader)
        encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]

        text = mixed_text(int(options.megabytes * 2**20))
        theirs, mine = encode(text), ours.tokens(options.model, text)["tokens"]
        first = next((i for i, pair in enumerate(zip(theirs, mine)) if pair[0] != pair[1]), None)
        same = theirs == mine
        report("tokenizer", same, f"{len(theirs)} and {len(mine)} tokens, first difference {first}")

        same = True
        for messages in CONVERSATIONS:
            wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            found = ours.tokens(options.model, json.dumps(messages), "--messages")
            same &= found["text"] == wanted and found["tokens"] == encode(wanted)
        report("chat template", same, f"{len(CONVERSATIONS)} conversations, texts and tokens")

        reference = AutoModelForCausalLM.from_pretrained(
            options.model.parent, gguf_file=options.model.name, dtype=torch.float32
        ).eval()
        ids = encode(PARAGRAPH)
        saved = folder / "saved"
        ours.run("convert", options.model, "--to", "f32", "--out", saved)
        loaded = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
        worst = (logits(reference, ids) - logits(loaded, ids)).abs().max().item()
        report("saved folder in transformers", worst < 1e-3, f"logits differ by at most {worst:.2e}")
        again = PreTrainedTokenizerFast.from_pretrained(saved)
        report("saved tokenizer in transformers", again(PARAGRAPH)["input_ids"] == ids, "same tokens")

        wanted = perplexity(reference, ids)
        found = ours.perplexity(options.model, PARAGRAPH, "--weights", "f32")
        good = abs(found - wanted) < 1e-3
        report("perplexity, f32", good, f"{found:.5f}, transformers {wanted:.5f}")
        for form in ("quantized-exact", "quantized"):
            step = ours.perplexity(options.model, PARAGRAPH, "--weights", form, "--decode")
            change = step / found - 1
            report(f"perplexity, {form}", abs(change) < 5e-3, f"{step:.5f}, {100 * change:+.3f} %")

        equal, ties, tokens = 0, 0, 0
        for prompt in PROMPTS:
            theirs = greedy(reference, encode(prompt), options.new_tokens)
            arguments = ["--weights", "f32", "--max-tokens", options.new_tokens, "--no-stop"]
            result = ours.run("generate", options.model, "--prompt", prompt, *arguments)
            mine = result["texts"][0]["tokens"]
            place = next((i for i, (a, b) in enumerate(zip(theirs, mine)) if a[0] != b), None)
            if place is None and len(mine) == len(theirs):
                equal += 1
                tokens += len(mine)
            elif place is not None and theirs[place][1] < TIE and mine[place] == theirs[place][2]:
                ties += 1
                tokens += place
            else:
                margin = theirs[place][1] if place is not None else float("nan")
                print(f"     {prompt!r}: differs at {place}, margin {margin:.2e}")
        what = f"{equal} of {len(PROMPTS)} equal for {options.new_tokens} tokens, {ties} up to a tie, {tokens} tokens"
        report("greedy texts", equal + ties == len(PROMPTS), what)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
