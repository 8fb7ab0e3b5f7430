"""Reference values of embeddings from PyTorch, for the tests of `specialformer-embedding`.

    python benches/peers/embedding_golden.py crates/testkit/golden/24_embedding

Writes `case.json` and `io.safetensors`: outputs, and gradients of sum(output * upstream).
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

SEED = 24


def main(folder: Path) -> None:
    torch.manual_seed(SEED)
    io: dict[str, torch.Tensor] = {}
    outputs: list[str] = []

    def leaf(name: str, *shape: int) -> torch.Tensor:
        value = torch.randn(*shape)
        io[name] = value.clone()
        return value.requires_grad_()

    def whole(name: str, high: int, count: int) -> torch.Tensor:
        io[name] = torch.randint(high, (count,))
        return io[name]

    def record(op: str, out: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        upstream = torch.randn_like(out)
        gradients = torch.autograd.grad((out * upstream).sum(), list(inputs.values()))
        io[f"{op}.upstream"] = upstream
        io[f"{op}.output"] = out.detach()
        outputs.append(f"{op}.output")
        for name, gradient in zip(inputs, gradients):
            io[f"{op}.grad.{name}"] = gradient
            outputs.append(f"{op}.grad.{name}")

    # Rows of a table; some tokens twice, some not at all.
    table = leaf("embedding.table", 11, 6)
    record("embedding", F.embedding(whole("embedding.tokens", 11, 9), table), {"table": table})

    # Weighted sums of rows; the third bag is empty.
    table, weights = leaf("bag.table", 7, 5), leaf("bag.weights", 8)
    offsets = torch.tensor([0, 3, 5, 5, 8])
    io["bag.offsets"] = offsets
    index = whole("bag.index", 7, 8)
    bag = F.embedding_bag(index, table, offsets[:-1], mode="sum", per_sample_weights=weights)
    record("bag", bag, {"table": table, "weights": weights})

    # FiLM: scale and shift by the row's type.
    x, scale, shift = leaf("film.x", 8, 6), leaf("film.scale", 3, 6), leaf("film.shift", 3, 6)
    types = whole("film.types", 3, 8)
    film = x * (1 + F.embedding(types, scale)) + F.embedding(types, shift)
    record("film", film, {"x": x, "scale": scale, "shift": shift})

    # A scale and bias that a bottleneck makes of h.
    x, h = leaf("adaptive.x", 7, 6), leaf("adaptive.h", 7, 4)
    down, down_bias = leaf("adaptive.down.weight", 3, 4), leaf("adaptive.down.bias", 3)
    up, up_bias = leaf("adaptive.up.weight", 12, 3), leaf("adaptive.up.bias", 12)
    s, b = F.linear(torch.tanh(F.linear(h, down, down_bias)), up, up_bias).chunk(2, dim=1)
    inputs = {"x": x, "h": h, "down.weight": down, "down.bias": down_bias}
    record("adaptive", x * (1 + s) + b, {**inputs, "up.weight": up, "up.bias": up_bias})

    # Positions.
    x, table = leaf("learned.x", 6, 4), leaf("learned.weight", 5, 4)
    places = whole("learned.places", 5, 6)
    record("learned", x + F.embedding(places, table), {"x": x, "weight": table})
    places = torch.tensor([0, 1, 7, 100])
    io["sinusoidal.places"] = places
    angle = places[:, None] * torch.exp(-math.log(1e4) * torch.arange(0, 8, 2) / 8)
    io["sinusoidal.output"] = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
    outputs.append("sinusoidal.output")

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in io.items()}, folder / "io.safetensors")
    shapes = lambda names: {name: list(io[name].shape) for name in names}
    case = {
        "case": "24_embedding",
        "seed": SEED,
        "description": "Outputs and gradients (of sum(output*upstream)) of embedding, embedding "
        "bag with weights, FiLM by type, a bottleneck's scale and bias, and positions.",
        "tolerances": {
            "sinusoidal.*": {"atol": 2e-5, "rtol": 1e-5},
            "*": {"atol": 1e-5, "rtol": 1e-5},
        },
        "inputs": shapes(name for name in io if name not in outputs),
        "outputs": shapes(outputs),
        "notes": {"torch": torch.__version__.split("+")[0]},
    }
    (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
