"""Singular-value fine-tuning and LoRA in PyTorch beside this project, taking turns.

    python tune_steps.py STEPS_BINARY MODEL [--method svf|lora] [--threads N] [--rounds N]

STEPS_BINARY is the example `tune_steps` of the facade, built for speed:
`cargo build --release -p specialformer --example tune_steps`. MODEL is a GGUF
file of a Llama of 135 million weights (`cargo xtask fetch smollm2`); PyTorch
gets a model of the same sizes with weights at random, since times do not
depend on them.

One step: 16 rows of 32 tokens, of which the last four are scored, forward,
backward and Adam on the factors z of all feed-forward matrices. `recomposed`
makes U diag(s*z) V^T in every step, as the code of the method's authors does;
`factored` multiplies by V, s*z and U. The head is applied to the scored
positions alone, in both. `--method lora` trains LoRA of rank 16 on the same
matrices, here and by PEFT.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("model")
parser.add_argument("--method", choices=["svf", "lora"], default="svf")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=10)
parser.add_argument("--only", choices=["factored", "recomposed", "peft", "ours"], help="one side alone")
arguments = parser.parse_args()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

torch.set_num_threads(arguments.threads)
torch.manual_seed(0)
ROWS, LENGTH, SCORED = 16, 32, 4


class Factored(nn.Module):
    """y = ((x V) * s z) U^T."""

    def __init__(self, u, s, vt):
        super().__init__()
        self.register_buffer("u", u)
        self.register_buffer("s", s)
        self.register_buffer("vt", vt)
        self.z = nn.Parameter(torch.ones_like(s))

    def forward(self, x):
        return F.linear(F.linear(x, self.vt) * (self.s * self.z), self.u)


class Recomposed(Factored):
    """y = x (U diag(s z) V^T)^T, the matrix made anew."""

    def forward(self, x):
        return F.linear(x, (self.u * (self.s * self.z)) @ self.vt)


def resident(field):
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return 1024 * int(line.split()[1])


def base_model():
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def with_svf(kind, factors):
    model = base_model()
    matrices = []
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            matrices.append((layer.mlp, name, getattr(layer.mlp, name).weight.detach()))
    if not factors:
        start = time.perf_counter()
        factors.extend(torch.linalg.svd(w, full_matrices=False) for _, _, w in matrices)
        print(f"decomposition of {len(matrices)} matrices: {time.perf_counter() - start:.2f} s")
    trained = []
    for (mlp, name, _), (u, s, vt) in zip(matrices, factors):
        layer = kind(u, s, vt)
        trained.append(layer.z)
        setattr(mlp, name, layer)
    return stepper(model, trained)


def with_lora():
    from peft import LoraConfig, get_peft_model

    targets = ["gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets)
    model = get_peft_model(base_model(), config).base_model.model
    return stepper(model, [p for p in model.parameters() if p.requires_grad])


def stepper(model, trained):
    optimizer = torch.optim.Adam(trained, lr=2e-3)
    tokens = torch.randint(0, 49152, (ROWS, LENGTH))
    first = LENGTH - 1 - SCORED
    targets = tokens[:, first + 1 : first + 1 + SCORED].reshape(-1)

    def step():
        hidden = model.model(tokens, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, first : first + SCORED]).reshape(-1, 49152)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return step


def ours():
    environment = dict(os.environ, RAYON_NUM_THREADS=str(arguments.threads))
    process = subprocess.Popen(
        [arguments.binary, arguments.model, arguments.method], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )

    def ask(word, field="seconds"):
        process.stdin.write(word + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())[field]

    return process, ask


print(f"{arguments.threads} threads, {arguments.rounds} rounds, PyTorch {torch.__version__}")
factors, sides, process = [], {}, None
builders = {"peft": with_lora}
if arguments.method == "svf":
    builders = {
        "factored": lambda: with_svf(Factored, factors),
        "recomposed": lambda: with_svf(Recomposed, factors),
    }
for name, build in builders.items():
    if arguments.only in (None, name):
        step = build()

        def timed(step=step):
            start = time.perf_counter()
            step()
            return time.perf_counter() - start

        sides[f"PyTorch, {name}"] = timed
if arguments.only in (None, "ours"):
    process, ask = ours()
    if arguments.method == "svf":
        print(f"decomposition here: {ask('decompose'):.2f} s")
    sides["specialformer"] = lambda: ask("step")
before = resident("VmRSS:")
if arguments.only and arguments.only != "ours":
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
times = {name: [] for name in sides}
for _ in range(arguments.rounds + 1):
    for name, side in sides.items():
        times[name].append(side())
for name, values in times.items():
    values = values[1:]
    print(f"{name:20} median {1e3 * statistics.median(values):8.0f} ms, least {1e3 * min(values):8.0f} ms a step")
if process:
    if arguments.method == "svf":
        print(f"switching the expert: {1e3 * ask('switch'):.2f} ms")
    print(f"peak above the loaded model, here: {ask('memory', 'bytes') / 1e6:.0f} MB")
    process.stdin.close()
    sys.exit(process.wait())
if arguments.only:
    print(f"peak above the loaded model, PyTorch: {(resident('VmHWM:') - before) / 1e6:.0f} MB")
