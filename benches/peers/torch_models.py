"""The PyTorch models that the benchmarks compare against.

Shape letters: B batch, T sequence length, C model width, H heads, D head
width, F feed-forward width, V vocabulary.

The layouts are described in README.md beside this file. Projections that read
the same input are one product (query, key and value together, or key and value
where only one query is wanted), because that is the fastest way to write them
in eager PyTorch. The number of parameters and the arithmetic do not depend on
it.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-7


def expressive_attention(query, key, value, mask=None, epsilon=EPSILON):
    """w = z^2 / (1 + z^2), a = w / (epsilon + sum w), y = a v.

    query [..., Tq, D], key and value [..., Tk, D]; mask [Tq, Tk] holds 1 for
    allowed and 0 for forbidden pairs. Of six ways to write it this one was the
    fastest: masking the scores (z = 0 has weight 0) keeps one [Tq, Tk] buffer
    less for the backward pass than masking the weights, and the division by the
    row sum is done after the product with the values, on [Tq, D] numbers.
    """
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores * mask
    squares = scores.square()
    weights = squares / (squares + 1.0)
    return (weights @ value) / (weights.sum(-1, keepdim=True) + epsilon)


def softmax_attention(query, key, value, causal):
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


class Attend(nn.Module):
    """Attention of [B, H, Tq, D] over [B, H, T, D], softmax or expressive.

    `last_only` says that there is a single query, at the last position, which
    sees every key.
    """

    def __init__(self, kernel, length, last_only):
        super().__init__()
        self.kernel = kernel
        self.last_only = last_only
        mask = torch.ones(length, length).tril()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, query, key, value):
        if self.kernel == "softmax":
            return softmax_attention(query, key, value, causal=not self.last_only)
        return expressive_attention(
            query, key, value, None if self.last_only else self.mask
        )


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), on [B, T, C]."""

    def __init__(self, width, heads, hidden, length, kernel, last_only):
        super().__init__()
        self.heads = heads
        self.last_only = last_only
        self.attention_norm = nn.LayerNorm(width)
        if last_only:
            self.query = nn.Linear(width, width)
            self.key_value = nn.Linear(width, 2 * width)
        else:
            self.query_key_value = nn.Linear(width, 3 * width)
        self.attend = Attend(kernel, length, last_only)
        self.output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def split(self, x, parts):
        """[B, T, parts*C] to `parts` views of [B, H, T, D]."""
        batch, length, _ = x.shape
        x = x.view(batch, length, parts, self.heads, -1)
        return x.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x):
        normed = self.attention_norm(x)
        if self.last_only:
            (query,) = self.split(self.query(normed[:, -1:]), 1)
            key, value = self.split(self.key_value(normed), 2)
            x = x[:, -1:]
        else:
            query, key, value = self.split(self.query_key_value(normed), 3)
        y = self.attend(query, key, value).transpose(1, 2).reshape(x.shape)
        x = x + self.output(y)
        y = self.down(F.gelu(self.up(self.feed_forward_norm(x))))
        return x + y


class Transformer(nn.Module):
    """Token ids [B, T] to logits [B, classes] (`last_only`) or [B, T, classes]."""

    def __init__(
        self, vocabulary, length, width, heads, layers, hidden, classes, kernel, last_only
    ):
        super().__init__()
        self.last_only = last_only
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Parameter(torch.empty(length, width))
        self.layers = nn.ModuleList(
            TransformerBlock(
                width, heads, hidden, length, kernel, last_only and layer == layers - 1
            )
            for layer in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.02)

    def forward(self, tokens):
        x = self.token_embedding(tokens) + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        if self.last_only:
            x = x[:, -1]
        return self.head(self.norm(x))


class PositionLinear(nn.Module):
    """A linear map of its own at each of T positions: weight [T, in, out]."""

    def __init__(self, length, inputs, outputs):
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(length, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(length, 1, outputs).uniform_(-bound, bound))

    def forward(self, x):
        """x [T, B, in] to [T, B, out]."""
        return torch.baddbmm(self.bias, x, self.weight)

    def last(self, x):
        """x [B, in] at the last position to [B, out]."""
        return torch.addmm(self.bias[-1], x, self.weight[-1])


class CisformerBlock(nn.Module):
    """TransformerBlock with parameters per position, on [T, B, C].

    Position-major activations let every per-position product be one batched
    product without copies.
    """

    def __init__(self, width, heads, hidden, length, kernel, last_only):
        super().__init__()
        self.heads = heads
        self.last_only = last_only
        self.attention_norm = nn.LayerNorm(width)
        if last_only:
            self.query = PositionLinear(length, width, width)
            self.key_value = PositionLinear(length, width, 2 * width)
        else:
            self.query_key_value = PositionLinear(length, width, 3 * width)
        self.attend = Attend(kernel, length, last_only)
        self.output = PositionLinear(length, width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = PositionLinear(length, width, hidden)
        self.down = PositionLinear(length, hidden, width)

    def split(self, x, parts):
        """[T, B, parts*C] to `parts` views of [B, H, T, D]."""
        length, batch, _ = x.shape
        x = x.view(length, batch, parts, self.heads, -1)
        return x.permute(2, 1, 3, 0, 4).unbind(0)

    def forward(self, x):
        normed = self.attention_norm(x)
        if not self.last_only:
            query, key, value = self.split(self.query_key_value(normed), 3)
            y = self.attend(query, key, value).permute(2, 0, 1, 3).reshape(x.shape)
            x = x + self.output(y)
            return x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))
        (query,) = self.split(self.query.last(normed[-1]).unsqueeze(0), 1)
        key, value = self.split(self.key_value(normed), 2)
        x = x[-1]
        x = x + self.output.last(self.attend(query, key, value).reshape(x.shape))
        y = self.down.last(F.gelu(self.up.last(self.feed_forward_norm(x))))
        return x + y


class Cisformer(nn.Module):
    """Token ids [B, T] to logits [B, classes] of the last position."""

    def __init__(self, vocabulary, length, width, heads, layers, hidden, classes, kernel):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            CisformerBlock(width, heads, hidden, length, kernel, layer == layers - 1)
            for layer in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, tokens):
        x = self.token_embedding(tokens.t())
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class LstmClassifier(nn.Module):
    """Token ids [B, T] to logits [B, classes] from the last hidden state."""

    def __init__(self, vocabulary, width, hidden, classes):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden)
        self.head = nn.Linear(hidden, classes)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, tokens):
        _, (hidden, _) = self.lstm(self.token_embedding(tokens.t()))
        return self.head(hidden[-1])


class WindowMlp(nn.Module):
    """Token ids [B, T], one-hot and concatenated, to logits [B, classes]."""

    def __init__(self, vocabulary, length, hidden, classes):
        super().__init__()
        self.vocabulary = vocabulary
        self.input = nn.Linear(length * vocabulary, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, tokens):
        window = F.one_hot(tokens, self.vocabulary).flatten(1).float()
        return self.head(F.gelu(self.input(window)))


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, width, hidden):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


# Of transformers' ways to run experts the one of least time here: a loop over
# the experts that have tokens.
EXPERTS = "eager"


def olmoe_block(width, hidden, experts, picked):
    """The sparse block of OLMoE as `transformers` has it: softmax, top-k without
    renormalisation, SwiGLU experts."""
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_experts=experts,
        num_experts_per_tok=picked,
        norm_topk_prob=False,
        experts_implementation=EXPERTS,
    )
    block = OlmoeSparseMoeBlock(config).float().train()
    # Some versions leave stacked weights uninitialised until a model is built.
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.02)
    return block
