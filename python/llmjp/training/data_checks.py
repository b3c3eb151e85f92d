"""Whether the model can read its data: one pass over all ids, dealt out to the processes."""

from collections.abc import Sequence

from llmjp.config import ModelConfig
from llmjp.data.blend import Course, Validation
from llmjp.data.isolation import check_ends
from llmjp.training.processes import Processes
from llmjp.training.settings import TrainSettings

_TOLD = 1 << 30  # bytes from which on the pass takes long enough to be announced


def check_ids(
    settings: TrainSettings,
    data: Course,
    valid: Sequence[Validation],
    config: ModelConfig,
    processes: Processes,
) -> None:
    """Every id is in the vocabulary; where documents are isolated, they end with the end token.

    Ids are read the first time only (llmjp.data.indexed keeps their range), and each process reads
    its own part of them: one alone would take longer on hundreds of GB than the others' patience.

    Raises:
        UserError: it is not so; the message names the dataset.
    """
    every = [*data.documents(), *(part.data.documents for part in valid)]
    lists = list({id(each): each for each in every}.values())  # validation's are mostly training's
    datasets = [each for documents in lists for each in documents.datasets]
    unread = [each.bin_bytes for each in datasets if each.known_range() is None]
    if processes.first and sum(unread) >= _TOLD:
        print(f"reading {sum(unread) / 1e9:,.0f} GB of ids once, to check them", flush=True)
    mine = processes.together(
        lambda: [each.id_range(processes.rank, processes.world) for each in datasets]
    )
    shares = processes.shared(mine)

    def check() -> None:
        for dataset, found in zip(datasets, zip(*shares, strict=True), strict=True):
            smallest, largest = min(low for low, _ in found), max(high for _, high in found)
            dataset.keep_id_range(smallest, largest)
            dataset.check_range(smallest, largest, config.vocab_size)
        if settings.isolate_documents:
            for documents in lists:
                check_ends(documents, config.eos_token_id)

    processes.first_alone(check)
