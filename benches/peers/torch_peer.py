#!/usr/bin/env python3
"""PyTorch's side of the benchmarks: a server that times training steps.

The protocol, the cases and the layout of the models are in README.md.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
import time


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument(
        "--adam",
        choices=["default", "foreach", "fused"],
        default="default",
        help="implementation of torch.optim.Adam; `default` is what PyTorch picks on a CPU",
    )
    return parser.parse_args()


ARGUMENTS = arguments()
# OpenMP and MKL read these once, when torch is imported.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(ARGUMENTS.threads)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import torch_models as models  # noqa: E402

WARM_UP = 3
BATCHES = 8
PAGE = os.sysconf("SC_PAGE_SIZE")


def adam(parameters):
    options = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    return torch.optim.Adam(parameters, lr=1e-3, **options[ARGUMENTS.adam])


class Training:
    """forward, backward, clipping if asked for, Adam; batches made beforehand."""

    def __init__(self, model, batch, length, vocabulary, classes, target_shape, clip, expected):
        self.model = model
        self.parameters = sum(p.numel() for p in model.parameters())
        if self.parameters != expected:
            raise AssertionError(f"{self.parameters} parameters instead of {expected}")
        self.optimizer = adam(model.parameters())
        self.clip = clip
        self.classes = classes
        self.batches = [
            (
                torch.randint(vocabulary, (batch, length)),
                torch.randint(classes, target_shape).flatten(),
            )
            for _ in range(BATCHES)
        ]
        self.next = 0

    def step(self):
        tokens, targets = self.batches[self.next]
        self.next = (self.next + 1) % BATCHES
        self.optimizer.zero_grad()
        logits = self.model(tokens).view(-1, self.classes)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss


class Attention:
    """Attention alone: forward, then backward from a random cotangent."""

    parameters = 0

    def __init__(self, kernel, shape=(8, 8, 512, 64)):
        self.query, self.key, self.value = (
            torch.randn(shape, requires_grad=True) for _ in range(3)
        )
        self.cotangent = torch.randn(shape)
        self.mask = torch.ones(shape[2], shape[2]).tril()
        self.kernel = kernel

    def step(self):
        self.query.grad = self.key.grad = self.value.grad = None
        if self.kernel == "softmax":
            y = models.softmax_attention(self.query, self.key, self.value, causal=True)
        else:
            y = models.expressive_attention(self.query, self.key, self.value, self.mask)
        y.backward(self.cotangent)
        return self.query.grad.abs().mean()


class FeedForwardAlone:
    """A feed-forward layer alone: forward, then backward from a random cotangent
    to the input and every parameter."""

    def __init__(self, layer, expected, tokens=4096, width=512):
        self.layer = layer
        self.parameters = sum(p.numel() for p in layer.parameters())
        if self.parameters != expected:
            raise AssertionError(f"{self.parameters} parameters instead of {expected}")
        self.x = torch.randn(1, tokens, width, requires_grad=True)
        self.cotangent = torch.randn(1, tokens, width)

    def step(self):
        self.x.grad = None
        self.layer.zero_grad(set_to_none=True)
        y = self.layer(self.x)
        y = y[0] if isinstance(y, tuple) else y
        y.backward(self.cotangent)
        return self.x.grad.abs().mean()


IARC = dict(vocabulary=14, length=16, classes=10)
IARC_SHAPE = dict(width=16, heads=2, layers=2, hidden=64)


def iarc(model, expected):
    return Training(
        model,
        batch=256,
        target_shape=(256,),
        clip=1.0,
        expected=expected,
        **IARC,
    )


def iarc_transformer(kernel):
    return iarc(models.Transformer(**IARC, **IARC_SHAPE, kernel=kernel, last_only=True), 7_242)


def iarc_cisformer(kernel):
    return iarc(models.Cisformer(**IARC, **IARC_SHAPE, kernel=kernel), 103_466)


def decoder(batch, length, vocabulary, expected, **shape):
    model = models.Transformer(
        vocabulary=vocabulary,
        length=length,
        classes=vocabulary,
        kernel="softmax",
        last_only=False,
        **shape,
    )
    return Training(
        model, batch, length, vocabulary, vocabulary, (batch, length), None, expected
    )


CASES = {
    "iarc_cisformer_expressive": lambda: iarc_cisformer("expressive"),
    "iarc_cisformer_softmax": lambda: iarc_cisformer("softmax"),
    "iarc_transformer_softmax": lambda: iarc_transformer("softmax"),
    "iarc_transformer_expressive": lambda: iarc_transformer("expressive"),
    "iarc_lstm32": lambda: iarc(models.LstmClassifier(14, 16, 32, 10), 6_954),
    "iarc_mlp440": lambda: iarc(models.WindowMlp(14, 16, 440, 10), 103_410),
    "decoder_d64": lambda: decoder(
        256, 24, 64, expected=109_888, width=64, heads=2, layers=2, hidden=256
    ),
    "decoder_d512": lambda: decoder(
        8, 256, 1024, expected=20_096_000, width=512, heads=8, layers=6, hidden=2048
    ),
    "attention_softmax": lambda: Attention("softmax"),
    "attention_expressive": lambda: Attention("expressive"),
    "moe_swiglu": lambda: FeedForwardAlone(models.olmoe_block(512, 1024, 16, 2), 25_174_016),
    "dense_swiglu": lambda: FeedForwardAlone(models.SwiGlu(512, 2048), 3_145_728),
}


def status_bytes(field):
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def reset_peak_memory():
    """Give freed memory back and start the peak counter at what is in use."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass
    with open("/proc/self/clear_refs", "w") as counters:
        counters.write("5")
    return status_bytes("VmRSS")


class Server:
    def __init__(self):
        self.name = None
        self.case = None
        self.baseline = None

    def load(self, name):
        """Builds and warms up a case; a server holds one case at a time."""
        self.case = None
        torch.manual_seed(0)
        case = CASES[name]()
        try:
            self.baseline = reset_peak_memory()
        except (OSError, RuntimeError):
            self.baseline = None
        for _ in range(WARM_UP):
            case.step()
        self.name, self.case = name, case

    def run(self, name, steps):
        if self.name != name or self.case is None:
            self.load(name)
        seconds = []
        result = None
        for _ in range(steps):
            start = time.perf_counter()
            result = self.case.step()
            seconds.append(time.perf_counter() - start)
        peak = None if self.baseline is None else status_bytes("VmHWM") - self.baseline
        return {
            "case": name,
            "seconds": seconds,
            "rss_bytes": peak,
            "parameters": self.case.parameters,
            "value": None if result is None else result.item(),
        }


def answer(server, words):
    if words == ["list"]:
        return {"cases": list(CASES)}
    if len(words) == 3 and words[0] == "run":
        if words[1] not in CASES:
            return {"error": f"unknown case {words[1]}"}
        if not words[2].isdigit() or int(words[2]) == 0:
            return {"error": f"steps: expected a positive whole number, got {words[2]}"}
        return server.run(words[1], int(words[2]))
    return {"error": f"expected `list`, `run CASE N` or `quit`, got `{' '.join(words)}`"}


def start_up():
    """Loads what PyTorch loads lazily, so that it counts as start-up.

    The first optimiser step imports modules and the first parallel product
    starts the thread pool.
    """
    layer = torch.nn.Linear(256, 256)
    optimizer = adam(layer.parameters())
    layer(torch.randn(256, 256)).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    optimizer.step()


def main():
    torch.set_num_threads(ARGUMENTS.threads)
    torch.set_num_interop_threads(1)
    start_up()

    def reply(message):
        print(json.dumps(message), flush=True)

    reply(
        {
            "ready": True,
            "peer": "pytorch",
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "adam": ARGUMENTS.adam,
        }
    )
    server = Server()
    for line in sys.stdin:
        words = line.split()
        if not words:
            continue
        if words == ["quit"]:
            break
        try:
            reply(answer(server, words))
        except Exception as error:  # one line for the runner, whatever went wrong
            reply({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
