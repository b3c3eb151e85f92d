"""The distribution that `sample` draws from, by the definition of each filter."""

import torch
from torch import Tensor


def probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    previous: Tensor | None = None,
    valid_vocab: int | None = None,
) -> Tensor:
    """Probability of each id, [rows, vocab], in logits' dtype; a row of -inf has none.

    Sources: top-p: Holtzman et al., arXiv 1904.09751; penalty: Keskar et al., arXiv 1909.05858;
    min-p: Nguyen et al., arXiv 2407.01082.
    """
    result = torch.zeros_like(logits)
    classes = logits.shape[1] if valid_vocab is None else valid_vocab
    for row, x in enumerate(logits[:, :classes].nan_to_num(nan=-torch.inf, neginf=-torch.inf)):
        if bool((x == -torch.inf).all()):
            continue
        x = x.clone()
        for i in set() if previous is None else set(previous[row].tolist()) & set(range(classes)):
            x[i] = x[i] * repetition_penalty if x[i] < 0 else x[i] / repetition_penalty
        if temperature == 0:
            result[row, x.argmax()] = 1
            continue
        x = x / temperature
        if top_k > 0:
            x[x < x.sort(descending=True).values[min(top_k, classes) - 1]] = -torch.inf
        if top_p < 1:
            ordered = torch.softmax(x, 0).sort(descending=True).values
            before = ordered.cumsum(0) - ordered
            last = max(1, int((before < top_p).sum())) - 1
            x[torch.softmax(x, 0) < ordered[last]] = -torch.inf
        p = torch.softmax(x, 0)
        x[p < min_p * p.max()] = -torch.inf
        result[row, :classes] = torch.softmax(x, 0)
    return result
