"""The GPT-2 architecture of the LLM-jp v1.0 models, on the fused ops of llmjp_ext.

The state dict is that of Transformers' GPT2LMHeadModel: the same keys and shapes, and the output
layer tied to the token embedding, so that checkpoints go both ways without conversion.

Two rules shape the modules. Each op gets only parameters of the module that calls it, because
ZeRO-3 gathers a parameter for its owner's forward alone. And each module draws its initial weights
in its own constructor, because deepspeed.zero.Init takes them away when the constructor ends.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llmjp.config import ModelConfig
from llmjp_ext import attention, attention_decode, attention_varlen, bias_gelu, linear_cross_entropy
from llmjp_ext.nn import LayerNorm


@dataclass
class KeyValueCache:
    """Keys and values of the tokens seen so far, one pair of tensors a layer.

    Attributes:
        keys, values: n_layer tensors [batch, capacity, n_head, head_dim].
        lengths: int32 [batch], how many tokens of each row are filled in.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "KeyValueCache":
        """A cache for `capacity` tokens in each of `batch` rows.

        Raises:
            ValueError: the model has fewer positions than `capacity`.
        """
        if capacity > config.n_positions:
            raise ValueError(
                f"the model has {config.n_positions} positions, the cache was to hold {capacity}"
            )
        shape = (batch, capacity, config.n_head, config.head_dim)
        layers = range(config.n_layer)
        return cls(
            [torch.zeros(shape, dtype=dtype, device=device) for _ in layers],
            [torch.zeros(shape, dtype=dtype, device=device) for _ in layers],
            torch.zeros(batch, dtype=torch.int32, device=device),
        )

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self.keys[0].shape[1]

    def rows(self, first: int, count: int) -> "KeyValueCache":
        """The cache of some rows only; it shares its memory with this one."""
        part = slice(first, first + count)
        return KeyValueCache(
            [k[part] for k in self.keys], [v[part] for v in self.values], self.lengths[part]
        )


@dataclass(frozen=True)
class DocumentBounds:
    """Documents in a batch that are kept apart: a token sees those of its own alone.

    Attributes:
        positions: int64 [batch, tokens], a token's place in its document.
        bounds: int32 [documents + 1], the first token of each document in the flattened batch, then
            their number. No document reaches over two rows.
        longest: tokens of the longest document.
    """

    positions: Tensor
    bounds: Tensor
    longest: int

    def mask(self) -> Tensor:
        """Which token sees which, bool [batch, 1, tokens, tokens]; for plain PyTorch alone."""
        document = (self.positions == 0).cumsum(1)
        return (document[:, None, :, None] == document[:, None, None, :]).tril()


class Embedding(nn.Embedding):
    """A lookup table, drawn from a normal distribution."""

    def __init__(self, rows: int, width: int, std: float) -> None:
        super().__init__(rows, width)
        nn.init.normal_(self.weight, std=std)


class Projection(nn.Module):
    """y = x @ weight + bias with weight [in, out], the layout of GPT-2's checkpoints."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], -1)


class GeluProjection(Projection):
    """y = GELU(x @ weight + bias), with as few passes over y as the device allows."""

    kernels = True

    def __init__(self, inputs: int, outputs: int, std: float, gelu: str) -> None:
        super().__init__(inputs, outputs, std)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        if not self.kernels:
            return F.gelu(super().forward(x), approximate=self.gelu)
        if (
            x.device.type == "cpu"
        ):  # there the product takes the bias along without a pass of its own
            return bias_gelu(super().forward(x), approximate=self.gelu)
        return bias_gelu(x @ self.weight, self.bias, approximate=self.gelu)


class Attention(nn.Module):
    """Causal self-attention over [batch, tokens, n_embd]."""

    kernels = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.attn_pdrop
        width, std = config.n_embd, config.initializer_range
        self.c_attn = Projection(width, 3 * width, std)
        self.c_proj = Projection(width, width, std / math.sqrt(2 * config.n_layer))

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None,
        layer: int,
        documents: DocumentBounds | None,
    ) -> Tensor:
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.n_head, -1)).unbind(-3)
        dropout = self.dropout if self.training else 0.0
        if cache is not None:
            y = attention_decode(
                q, cache.keys[layer], cache.values[layer], cache.lengths, k_new=k, v_new=v
            )
        elif not self.kernels:
            mask = None if documents is None else documents.mask()
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout
            )
            y = y.transpose(1, 2)
        elif documents is not None:
            bounds, longest = documents.bounds, documents.longest
            q, k, v = (part.flatten(0, 1) for part in (q, k, v))
            y = attention_varlen(
                q, k, v, bounds, bounds, longest, longest, causal=True, dropout_p=dropout
            )
            y = y.unflatten(0, x.shape[:-1])
        else:
            y = attention(q, k, v, causal=True, dropout_p=dropout)
        return self.c_proj(y.flatten(-2))


class FeedForward(nn.Module):
    """Two projections with a GELU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner, std = config.n_embd, config.inner_width, config.initializer_range
        self.c_fc = GeluProjection(width, inner, std, config.gelu)
        self.c_proj = Projection(inner, width, std / math.sqrt(2 * config.n_layer))

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.c_fc(x))


class ResidualNorm(LayerNorm):
    """A norm that in training drops of what it adds to the residual stream."""

    kernels = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.n_embd, config.layer_norm_epsilon, dropout_p=config.resid_pdrop)

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.kernels:
            return super().forward(x, residual)
        if residual is not None:
            x = F.dropout(x, self.dropout_p, self.training) + residual
        y = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return y if residual is None else (y, x)


class Block(nn.Module):
    """One layer of the residual stream r: r += attention(norm(r)), then r += mlp(norm(r)).

    Dropout and the sum are left to the next norm, which drops, adds and normalises in one pass. So
    a block takes and returns a pair: what is still to be added, and the stream (None before the
    first block).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.ln_1 = ResidualNorm(config)
        self.attn = Attention(config)
        self.ln_2 = ResidualNorm(config)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        stream: Tensor | None,
        cache: KeyValueCache | None,
        documents: DocumentBounds | None = None,
    ) -> tuple[Tensor, Tensor]:
        if stream is None:
            y, stream = self.ln_1(x), x
        else:
            y, stream = self.ln_1(x, stream)
        y, stream = self.ln_2(self.attn(y, cache, self.layer, documents), stream)
        return self.mlp(y), stream


class Transformer(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd, config.initializer_range)
        self.wpe = Embedding(config.n_positions, config.n_embd, config.initializer_range)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = ResidualNorm(config)
        self.dropout = config.embd_pdrop
        self.checkpoint_activations = False

    def forward(
        self,
        input_ids: Tensor,
        cache: KeyValueCache | None,
        documents: DocumentBounds | None = None,
    ) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        if cache is not None:
            positions = cache.lengths[:, None] + positions
        if documents is not None:
            positions = documents.positions
        x = self.wte(input_ids) + self.wpe(positions)
        x = F.dropout(x, self.dropout, self.training)
        stream: Tensor | None = None
        for block in self.h:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x, stream = checkpoint(block, x, stream, cache, documents, use_reentrant=False)
            else:
                x, stream = block(x, stream, cache, documents)
        y, _ = self.ln_f(x, stream)
        return y


class Head(nn.Module):
    """Logits of hidden states or their loss, with the embedding's own weight [vocab_size, n_embd].

    The loss is made here because ZeRO-3 gathers the weight for this module's forward.
    """

    kernels = True

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            return F.linear(x, self.weight)
        if not self.kernels:
            logits = F.linear(x, self.weight).flatten(0, -2)
            return F.cross_entropy(logits.float(), labels.flatten())
        return linear_cross_entropy(x, self.weight, labels)


class GPT(nn.Module):
    """A causal language model; its state dict is GPT2LMHeadModel's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = Head(self.transformer.wte.weight)

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """Whether training recomputes each block's inside instead of keeping it in memory."""
        self.transformer.checkpoint_activations = enabled

    def use_kernels(self, enabled: bool = True) -> None:
        """Whether training runs the ops of llmjp_ext, or plain PyTorch for comparison."""
        for module in self.modules():
            if hasattr(module, "kernels"):
                module.kernels = enabled  # type: ignore[assignment]

    def tie_weights(self) -> None:
        """Makes the output layer share the token embedding again, after either was replaced."""
        self.lm_head.weight = self.transformer.wte.weight

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: KeyValueCache | None = None,
        documents: DocumentBounds | None = None,
    ) -> Tensor:
        """Logits of every position, or the loss.

        Args:
            input_ids: int64 [batch, tokens], at most n_positions tokens with those in the cache.
            labels: int64 [batch, tokens]; labels[b, t] is the token that follows input_ids[b, t],
                -100 where there is none to learn.
            cache: the tokens before input_ids; gets their keys and values.
            documents: keeps the documents of packed samples apart; not together with a cache.

        Returns:
            [batch, tokens, vocab_size] in the model's dtype; with labels the mean cross-entropy in
            nats, a float32 scalar.
        """
        return self.lm_head(self._hidden(input_ids, cache, documents), labels)

    def next_logits(self, input_ids: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits [batch, vocab_size] of the token after input_ids [batch, tokens]."""
        return self.lm_head(self._hidden(input_ids, cache)[:, -1])

    def _hidden(
        self,
        input_ids: Tensor,
        cache: KeyValueCache | None,
        documents: DocumentBounds | None = None,
    ) -> Tensor:
        tokens = input_ids.shape[1]
        room = self.config.n_positions if cache is None else cache.capacity
        if tokens > room:
            raise ValueError(f"{tokens} tokens are more than the {room} positions there are")
        hidden = self.transformer(input_ids, cache, documents)
        if cache is not None:
            cache.lengths += tokens
        return hidden
