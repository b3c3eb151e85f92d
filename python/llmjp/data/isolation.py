"""Documents of packed samples kept apart: where each begins, and its tokens' positions.

A document begins at the end token of the one before it, which is the first thing that it sees and
from which its first token is predicted, just as generation starts from the end token. So every
token but the first of a stream is a target once, as without isolation, and each is predicted from
its own document alone.
"""

import numpy as np
import numpy.typing as npt

from llmjp.data.packed import Documents
from llmjp.errors import UserError

_LOOKED_AT = 1000  # documents of a dataset


def document_bounds(
    inputs: npt.NDArray[np.int64], end: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int]:
    """The documents of samples that lie one behind another.

    Args:
        inputs: [samples, seq_length].
        end: id of the end token.

    Returns:
        positions [samples, seq_length], counted from each document's first token; bounds [documents
        + 1], the first token of each document in the flattened inputs, and their number; the length
        of the longest.
    """
    begins = inputs == end
    begins[:, 0] = True
    starts = np.flatnonzero(begins)
    bounds = np.append(starts, inputs.size)
    lengths = np.diff(bounds)
    positions = np.arange(inputs.size) - np.repeat(starts, lengths)
    return positions.reshape(inputs.shape), bounds.astype(np.int32), int(lengths.max())


def check_ends(documents: Documents, end: int) -> None:
    """Looks at documents from all over the data: each must end with the end token.

    Raises:
        UserError: one does not; the message names it.
    """
    for dataset in documents.datasets:
        for number in range(0, len(dataset), max(len(dataset) // _LOOKED_AT, 1)):
            ids = dataset[number]
            if len(ids) and ids[-1] != end:
                raise UserError(
                    f"{dataset.prefix}: document {number:,} ends with the id {ids[-1]}, not with "
                    f"the end token, {end}: isolate_documents cannot tell documents apart there"
                )
