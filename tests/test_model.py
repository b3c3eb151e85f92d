"""llmjp.model.GPT is Transformers' GPT2LMHeadModel: same state dict, logits and gradients.

The oracle runs with eager attention: in float64 as the truth, in the tested dtype as the measure of
what error is usual. Failures print the seed.
"""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from llmjp.config import PRESETS, ModelConfig, preset
from llmjp.errors import UserError
from llmjp.model import GPT, KeyValueCache
from llmjp_ext.testing import FORWARD_FACTOR, GRADIENT_FACTOR, assert_accurate

SMALL = ModelConfig(
    vocab_size=211,
    n_positions=48,
    n_embd=64,
    n_layer=3,
    n_head=4,
    n_inner=160,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
)


def oracle(config: ModelConfig) -> GPT2LMHeadModel:
    """Transformers' model of the same shape, with larger weights than a fresh one has."""
    entries = {k: v for k, v in config.to_dict().items() if k not in ("architectures",)}
    model = GPT2LMHeadModel(GPT2Config(**entries, attn_implementation="eager"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
            else:
                parameter.normal_(mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    return model


def ours_like(theirs: GPT2LMHeadModel, config: ModelConfig) -> GPT:
    model = GPT(config)
    model.load_state_dict(theirs.state_dict())
    return model


def tokens(batch: int, length: int, vocabulary: int = SMALL.vocab_size) -> tuple[Tensor, Tensor]:
    """Inputs and shifted labels, one label ignored."""
    ids = torch.randint(vocabulary, (batch, length + 1))
    labels = ids[:, 1:].clone()
    labels[0, 0] = -100
    return ids[:, :-1], labels


def loss_and_gradients(model: torch.nn.Module, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The loss and each parameter's gradient, by name."""
    if isinstance(model, GPT):
        loss = model(ids, labels)
    else:
        logits = model(ids).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    model.zero_grad()
    loss.backward()
    return {"loss": loss} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_state_dict_is_that_of_transformers() -> None:
    """The same keys and shapes, and one tensor for embedding and output layer."""
    config = preset("tiny")
    ours, theirs = GPT(config), oracle(config)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert ours.lm_head.weight is ours.transformer.wte.weight
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_loss_and_gradients(activation: str, dtype: torch.dtype) -> None:
    """As near to float64 as Transformers' own code is in the same dtype, by the numerics rule."""
    config = dataclasses.replace(SMALL, activation_function=activation)
    theirs = oracle(config)
    ours = ours_like(theirs, config).to(dtype)
    plain = oracle(config)
    plain.load_state_dict(theirs.state_dict())
    plain.to(dtype)
    exact = oracle(config)
    exact.load_state_dict(plain.state_dict())
    exact.double()
    ids, labels = tokens(3, 40)
    assert_accurate(
        ours(ids), exact(ids).logits, plain(ids).logits, factor=FORWARD_FACTOR, what="logits"
    )
    results = [loss_and_gradients(model, ids, labels) for model in (ours, exact, plain)]
    assert results[0].keys() == results[1].keys()
    for name, actual in results[0].items():
        factor = FORWARD_FACTOR if name == "loss" else GRADIENT_FACTOR
        assert_accurate(actual, results[1][name], results[2][name], factor=factor, what=name)


@pytest.mark.parametrize("split", [(1, 1, 1), (7,), (20, 1, 9, 1)], ids=str)
def test_cache_gives_what_the_whole_sequence_gives(split: tuple[int, ...]) -> None:
    """Tokens fed in parts through the cache have the logits of one pass, by the numerics rule."""
    theirs = oracle(SMALL)
    model = ours_like(theirs, SMALL).eval()
    ids, _ = tokens(2, sum(split))
    with torch.inference_mode():
        plain = theirs(ids).logits
        exact = theirs.double()(ids).logits
        cache = KeyValueCache.empty(SMALL, 2, sum(split) + 3)
        parts = [model(part, cache=cache) for part in ids.split(list(split), dim=1)]
    assert cache.lengths.tolist() == [sum(split)] * 2
    assert_accurate(torch.cat(parts, 1), exact, plain, what="logits through the cache")


def test_rows_of_a_cache_advance_on_their_own() -> None:
    """Prompts of different lengths, each fed into its row, then decoded together."""
    model = ours_like(oracle(SMALL), SMALL).eval()
    prompts = [torch.randint(SMALL.vocab_size, (1, n)) for n in (3, 11)]
    following = torch.randint(SMALL.vocab_size, (2, 1))
    with torch.inference_mode():
        cache = KeyValueCache.empty(SMALL, 2, 16)
        for row, ids in enumerate(prompts):
            model.next_logits(ids, cache.rows(row, 1))
        assert cache.lengths.tolist() == [3, 11]
        together = model.next_logits(following, cache)
        for row, ids in enumerate(prompts):
            alone = model(torch.cat([ids, following[row : row + 1]], 1))[0, -1]
            assert torch.allclose(together[row], alone, rtol=1e-4, atol=1e-4), f"row {row}"


def test_dropout_follows_the_mode_and_the_seed() -> None:
    """Off in eval(); in train() each of the three places changes the result, repeatably by seed."""
    ids, labels = tokens(2, 30)
    for place in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        config = dataclasses.replace(SMALL, **{place: 0.2})
        model = ours_like(oracle(config), config)
        losses = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            losses.append(model(ids, labels).item())
        assert losses[0] == losses[1] != losses[2], place
        model.eval()
        assert model(ids, labels).item() == model(ids, labels).item() != losses[0], place


def test_recomputed_activations_give_the_same_gradients() -> None:
    """With dropout on: recomputation draws the same masks, so that gradients agree bit for bit."""
    config = dataclasses.replace(SMALL, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    model = ours_like(oracle(config), config)
    ids, labels = tokens(2, 30)
    results = []
    for recompute in (False, True):
        model.checkpoint_activations(recompute)
        torch.manual_seed(11)
        results.append({k: v.clone() for k, v in loss_and_gradients(model, ids, labels).items()})
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_compiles_whole() -> None:
    """torch.compile(fullgraph=True) of the loss: one graph, the eager loss."""
    model = ours_like(oracle(SMALL), SMALL)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (12, 20):
        ids, labels = tokens(2, length)
        assert torch.allclose(compiled(ids, labels), model(ids, labels), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "count"), [("llm-jp-1.3b", 1_316_605_952), ("llm-jp-13b", 12_855_592_960)]
)
def test_presets_have_the_published_parameter_counts(name: str, count: int) -> None:
    """By the formula, and by the modules themselves."""
    assert PRESETS[name].parameter_count() == count
    with torch.device("meta"):
        model = GPT(PRESETS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_too_many_tokens_are_refused() -> None:
    """More tokens than positions or cache: an error before anything is computed."""
    model = GPT(SMALL)
    with pytest.raises(ValueError, match="49 tokens are more than the 48 positions"):
        model(torch.zeros(1, 49, dtype=torch.int64))
    with pytest.raises(ValueError, match="48 positions, the cache was to hold 49"):
        KeyValueCache.empty(SMALL, 1, 49)
    with pytest.raises(ValueError, match="9 tokens are more than the 8 positions"):
        model(torch.zeros(1, 9, dtype=torch.int64), cache=KeyValueCache.empty(SMALL, 1, 8))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported"),
        ({"n_embd": 65}, "n_embd must be a multiple of n_head, got 65 and 4"),
        ({"activation_function": "relu"}, "activation_function 'relu' is not supported"),
        ({"n_layer": "3"}, "n_layer = '3' has the wrong type"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"attn_pdrop": 1.0}, r"attn_pdrop must be in \[0, 1\)"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False is not supported"),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit_are_refused(entries: dict[str, object], words: str) -> None:
    """What the model would compute wrongly is an error that names the field."""
    with pytest.raises(UserError, match=words):
        ModelConfig.from_dict({**SMALL.to_dict(), **entries})


def test_unknown_preset_names_the_known_ones() -> None:
    """A typo in a preset's name lists what there is."""
    with pytest.raises(UserError, match=r"unknown model 'llm-jp'; presets are llm-jp-1.3b"):
        preset("llm-jp")


def test_config_survives_transformers() -> None:
    """to_dict() is read by GPT2Config, and its own to_dict() is read back as the same shape."""
    entries = SMALL.to_dict()
    entries.pop("architectures")
    assert ModelConfig.from_dict(GPT2Config(**entries).to_dict()) == SMALL


def test_initial_weights_are_gpt2s() -> None:
    """Normal with the configuration's deviation, less by sqrt(2 layers) where a block ends; zero
    biases, norms of one. A deviation of n numbers errs by 1 / sqrt(2 n): six are allowed."""
    torch.manual_seed(1)
    std, layers = 0.013, 6
    config = preset("tiny", n_layer=layers, initializer_range=std)
    for name, value in GPT(config).named_parameters():
        if value.dim() == 1:
            expected = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            assert (value == expected).all(), name
            continue
        wanted = std / math.sqrt(2 * layers) if name.endswith("c_proj.weight") else std
        error = 6 / math.sqrt(2 * value.numel())
        assert abs(value.std() / wanted - 1) < error and abs(value.mean()) < wanted * error, name
