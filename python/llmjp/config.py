"""Shapes of the models: LLM-jp v1.0's and a tiny one, in the fields of GPT-2's config.json."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from llmjp.errors import UserError

ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
# What config.json may say otherwise in GPT-2's family, and the one value that this model computes.
_FIXED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-2 model's shape; every field means what it means in Transformers' GPT2Config.

    Raises:
        UserError: for sizes that do not fit each other.
    """

    vocab_size: int = 50688
    n_positions: int = 2048
    n_embd: int = 2048
    n_layer: int = 24
    n_head: int = 16
    n_inner: int | None = None
    activation_function: str = "gelu"
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    bos_token_id: int = 7
    eos_token_id: int = 7

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(f"model: {name} must be at least 1, got {getattr(self, name)!r}")
        if self.n_embd % self.n_head:
            raise UserError(
                f"model: n_embd must be a multiple of n_head, got {self.n_embd} and {self.n_head}"
            )
        if self.activation_function not in ACTIVATIONS:
            raise UserError(
                f"model: activation_function {self.activation_function!r} is not supported, "
                f"only {', '.join(ACTIVATIONS)}"
            )
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"model: {name} must be in [0, 1), got {getattr(self, name)}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def inner_width(self) -> int:
        """Width of the MLP's hidden layer: n_inner, or 4 * n_embd where that is None."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def gelu(self) -> str:
        """The `approximate` argument of GELU: "none" (erf) or "tanh"."""
        return ACTIVATIONS[self.activation_function]

    def parameter_count(self) -> int:
        """Trainable numbers; the output layer shares the token embedding and counts once."""
        width, inner = self.n_embd, self.inner_width
        attention = 4 * width * width + 4 * width
        mlp = 2 * width * inner + inner + width
        norms = 4 * width
        embeddings = (self.vocab_size + self.n_positions) * width
        return embeddings + self.n_layer * (attention + mlp + norms) + 2 * width

    def flops_per_token(self, sequence_length: float) -> int:
        """Multiply-adds times two of forward and backward for one token, without recomputation.

        6 per weight that multiplies an activation, and 12 * n_layer * n_embd * length / 2 for
        causal attention's two products.

        Args:
            sequence_length: tokens that attend to each other; of documents of different lengths the
                mean over tokens, sum(length²) / sum(length).
        """
        width = self.n_embd
        matrices = self.n_layer * (4 * width * width + 2 * width * self.inner_width)
        matrices += self.vocab_size * width
        return 6 * matrices + round(6 * self.n_layer * width * sequence_length)

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, as Transformers' GPT2LMHeadModel reads it."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            **_FIXED,
            **dataclasses.asdict(self),
            "use_cache": True,
        }

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> "ModelConfig":
        """From a config.json's content; fields that do not change the computation are ignored.

        Raises:
            UserError: it describes another architecture, or has a value of the wrong type.
        """
        if entries.get("model_type") != "gpt2":
            raise UserError(
                f"model_type {entries.get('model_type')!r} is not supported, only 'gpt2'"
            )
        for name, value in _FIXED.items():
            if entries.get(name, value) != value:
                raise UserError(f"{name} = {entries[name]!r} is not supported, only {value!r}")
        known: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name not in entries:
                # GPT2Config's own defaults differ from LLM-jp's: a file must name the shape.
                if field.name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
                    raise UserError(f"{field.name} is missing")
                if field.name == "activation_function":
                    known[field.name] = "gelu_new"
                continue
            value = entries[field.name]
            wanted: tuple[type, ...] = (type(field.default),)
            if isinstance(field.default, float):
                wanted = (int, float)
            elif field.name == "n_inner":
                wanted = (int, type(None))
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise UserError(f"{field.name} = {value!r} has the wrong type")
            known[field.name] = value
        return cls(**known)


PRESETS = {
    "llm-jp-1.3b": ModelConfig(n_embd=2048, n_layer=24, n_head=16, n_inner=8192),
    "llm-jp-13b": ModelConfig(n_embd=5120, n_layer=40, n_head=40, n_inner=20480),
    "tiny": ModelConfig(
        vocab_size=2048, n_positions=256, n_embd=192, n_layer=4, n_head=3, n_inner=768
    ),
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """A configuration of PRESETS with some fields changed.

    Raises:
        UserError: no such preset, or values that do not fit.
    """
    if name not in PRESETS:
        raise UserError(f"unknown model {name!r}; presets are {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **overrides)
