"""Documents kept apart: bounds of packed samples, and a model that sees one document at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llmjp.config import preset
from llmjp.data.indexed_writer import IndexedWriter
from llmjp.data.isolation import check_ends, document_bounds
from llmjp.data.packed import Documents
from llmjp.errors import UserError
from llmjp.model import GPT, DocumentBounds
from llmjp_ext.testing import assert_accurate

END = 7
LENGTH = 16


def samples(seed: int, rows: int) -> np.ndarray:
    """Samples in which a token in six is the end token."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(8, 32, (rows, LENGTH))
    return np.where(rng.random(ids.shape) < 1 / 6, END, ids)


def isolated(inputs: np.ndarray) -> DocumentBounds:
    """The bounds as the model takes them."""
    positions, bounds, longest = document_bounds(inputs, END)
    return DocumentBounds(torch.from_numpy(positions), torch.from_numpy(bounds), longest)


@pytest.mark.parametrize("seed", range(20))
def test_documents_begin_at_end_tokens_and_rows(seed: int) -> None:
    """Bounds and positions are those of a token-by-token count."""
    inputs = samples(seed, rows=3)
    if seed % 2:
        inputs[0, :2], inputs[1, 0], inputs[2, -1] = END, END, END
    starts, positions = [], []
    for row in range(3):
        for column in range(LENGTH):
            if column == 0 or inputs[row, column] == END:
                starts.append(row * LENGTH + column)
            positions.append(row * LENGTH + column - starts[-1])
    found, bounds, longest = document_bounds(inputs, END)
    assert bounds.dtype == np.int32 and bounds.tolist() == [*starts, inputs.size]
    assert found.shape == inputs.shape and found.ravel().tolist() == positions
    assert longest == max(positions) + 1


def model(dtype: torch.dtype = torch.float32, kernels: bool = True) -> GPT:
    """A small model, the same each time."""
    torch.manual_seed(0)
    config = preset("tiny", vocab_size=32, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2)
    gpt = GPT(config).to(dtype).eval()
    gpt.use_kernels(kernels)
    return gpt


@pytest.mark.parametrize("kernels", [True, False])
def test_a_document_is_seen_as_if_it_were_alone(kernels: bool) -> None:
    """Logits of packed documents are those of each document in a batch of its own."""
    inputs = samples(5, rows=2)
    flat = torch.from_numpy(inputs).flatten()
    documents = isolated(inputs)
    with torch.no_grad():
        packed = model(kernels=kernels)(torch.from_numpy(inputs), documents=documents)
        for dtype in (torch.float64, torch.float32):
            alone = [
                model(dtype, kernels=False)(flat[None, first:last])[0]
                for first, last in zip(documents.bounds, documents.bounds[1:], strict=False)
            ]
            if dtype == torch.float64:
                reference = torch.cat(alone)
    assert len(alone) > 4
    assert_accurate(packed.flatten(0, 1), reference, torch.cat(alone), what="logits")


@pytest.mark.parametrize("recompute", [False, True])
def test_nothing_passes_between_documents(recompute: bool) -> None:
    """The loss of one document has no gradient in the embeddings of another's tokens."""
    inputs = np.full((1, LENGTH), 9)
    inputs[0, 8] = END
    inputs[0, 9:] = 10
    gpt = model().train()
    gpt.checkpoint_activations(recompute)
    labels = torch.from_numpy(inputs).roll(-1, 1)
    labels[:, 8:] = -100  # the loss of the first document alone
    gpt(torch.from_numpy(inputs), labels, None, isolated(inputs)).backward()
    places = gpt.transformer.wpe.weight.grad
    assert places is not None and places[:8].abs().sum(1).min() > 0
    assert places[8:].abs().max() == 0, "positions begin anew"
    with torch.no_grad():
        logits = gpt.eval()(torch.from_numpy(inputs), documents=isolated(inputs))
        inputs[0, :8] = 11
        other = gpt(torch.from_numpy(inputs), documents=isolated(inputs))
    assert torch.equal(logits[:, 8:], other[:, 8:]) and not torch.equal(logits, other)


def test_data_without_end_tokens_is_refused(tmp_path: Path) -> None:
    """The dataset, the document and both ids; empty documents are nothing to look at."""
    with IndexedWriter(tmp_path / "a", 100) as writer:
        for ids in ([5, END], [], [END], [5, 6]):
            writer.add(ids)
    documents = Documents([tmp_path / "a"])
    with pytest.raises(UserError, match=r"a: document 3 ends with the id 6, not with .* token, 7"):
        check_ends(documents, END)
    with pytest.raises(UserError, match="document 0 ends with the id 7"):
        check_ends(documents, 6)
