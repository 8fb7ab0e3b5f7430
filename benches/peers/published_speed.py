"""How fast a published model runs here, in transformers and in llama.cpp.

    cargo build --release --example published_times
    python benches/peers/published_speed.py --binary target/release/examples/published_times MODEL.gguf

The sides take turns, each measurement in a process of its own, so that the
peak memory is that of what was measured. llama.cpp takes part if the package
llama-cpp-python is there. Prints a table in Markdown.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

PREFILL, DECODE, BATCH, TRAIN, REPEATS = 256, 64, 32, 512, 3
WHAT = ["prefill", "decode", "batched", "train"]


def text(length, row=0, most=20_000):
    return [(i * 7919 + 13 * row + 5) % most for i in range(length)]


def fastest(run):
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def say(what, speed):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3
    print(json.dumps({"what": what, "tokens_per_second": speed, "peak_mb": peak}), flush=True)


def torch_side(model_path, what, threads):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        model_path.parent, gguf_file=model_path.name, dtype=torch.float32
    ).eval()
    print(json.dumps({"what": "load", "seconds": time.perf_counter() - start}), flush=True)

    def read(rows, length, **more):
        with torch.inference_mode():
            return model(torch.tensor([text(length, row) for row in range(rows)]), logits_to_keep=1, **more)

    def decode(rows):
        best = float("inf")
        for _ in range(REPEATS):
            step = read(rows, DECODE, use_cache=True)
            start = time.perf_counter()
            with torch.inference_mode():
                for _ in range(DECODE - 1):
                    ids = step.logits[:, -1:].argmax(-1)
                    step = model(ids, past_key_values=step.past_key_values, use_cache=True)
            best = min(best, time.perf_counter() - start)
        return rows * (DECODE - 1) / best

    def train():
        model.zero_grad()
        ids = torch.tensor([text(TRAIN + 1)])
        logits = model(ids[:, :-1]).logits[0]
        torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()

    if what == "prefill":
        speed = PREFILL / fastest(lambda: read(1, PREFILL))
    elif what == "train":
        speed = TRAIN / fastest(train)
    else:
        speed = decode(1 if what == "decode" else BATCH)
    say(what, speed)


def llama_side(model_path, what, threads):
    from llama_cpp import Llama

    if what not in ("prefill", "decode"):
        return
    start = time.perf_counter()
    model = Llama(str(model_path), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    print(json.dumps({"what": "load", "seconds": time.perf_counter() - start}), flush=True)

    def read():
        model.reset()
        model.eval(text(PREFILL))

    if what == "prefill":
        return say(what, PREFILL / fastest(read))
    best = float("inf")
    for _ in range(REPEATS):
        model.reset()
        model.eval(text(DECODE))
        start = time.perf_counter()
        for _ in range(DECODE - 1):
            model.eval([model.sample(temp=0.0)])
        best = min(best, time.perf_counter() - start)
    say(what, (DECODE - 1) / best)


def measure(command, threads):
    names = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **{name: str(threads) for name in names}}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        print(f"{' '.join(map(str, command))}: {done.stderr[-500:]}", file=sys.stderr)
        return {}
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["what"]: line for line in lines}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--binary")
    parser.add_argument("--side", choices=["transformers", "llama.cpp"], help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=WHAT, action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    what, threads = options.what or WHAT, options.threads or [1, 2]
    if options.side:
        side = torch_side if options.side == "transformers" else llama_side
        return side(options.model, what[0], threads[0])
    if not options.binary:
        sys.exit("--binary is needed: the example published_times")
    sides = ["ours, as stored", "ours, f32", "transformers"]
    if subprocess.run([sys.executable, "-c", "import llama_cpp"], capture_output=True).returncode == 0:
        sides.append("llama.cpp")

    def command(side, one, count):
        if side.startswith("ours"):
            form = ["f32"] if side.endswith("f32") else []
            return [options.binary, str(options.model), *form, one]
        own = [sys.executable, __file__, str(options.model), "--side", side]
        return [*own, "--what", one, "--threads", str(count)]

    print("| | threads |" + "".join(f" {side} |" for side in sides))
    print("|---|--:|" + "--:|" * len(sides))
    for count in threads:
        for one in what:
            best = {}
            for _ in range(options.rounds):
                for side in sides:
                    # Quantised weights are not trained.
                    if (one, side) == ("train", "ours, as stored"):
                        continue
                    found = measure(command(side, one, count), count)
                    for name in (one, "load"):
                        entry = found.get(name)
                        old = best.get((side, name))
                        key = "tokens_per_second" if name == one else "seconds"
                        better = old is None or (entry or old)[key] * (1 if name == one else -1) > old[
                            key
                        ] * (1 if name == one else -1)
                        if entry and better:
                            best[side, name] = entry
            def cell(side):
                entry, load = best.get((side, one)), best.get((side, "load"))
                if not entry:
                    return "–"
                return f"{entry['tokens_per_second']:.0f}/s, {entry['peak_mb']:.0f} MB, load {load['seconds']:.2f} s"
            print(f"| {one} | {count} | " + " | ".join(map(cell, sides)) + " |", flush=True)


if __name__ == "__main__":
    main()
