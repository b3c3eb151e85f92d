"""One of several processes that train on linear_cross_entropy inside ZeRO-3, for
test_linear_cross_entropy_zero.py.

Takes a file of that test's cases and writes <file>.<rank>.out: for each case the loss of this
process's samples, the gradients that the optimizer would see, and whether the weight was sharded
before and after.
"""

import sys
from pathlib import Path

import torch

from llmjp.training.processes import end_process, start_processes, stop_processes

# Small parameters stay whole unless told otherwise, and nothing would be tested.
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}},
}


def main(file: Path) -> None:
    """Runs the cases in order; one group of processes serves all."""
    processes = start_processes()
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    results = []
    for module, inputs in torch.load(file, weights_only=False):
        engine, *_ = deepspeed.initialize(
            model=module, model_parameters=module.parameters(), config=CONFIG
        )
        ours = [t.chunk(processes.world)[processes.rank] for t in inputs]
        sharded = [[p.numel() == 0 for p in module.parameters()]]
        loss = engine(*ours)
        engine.backward(loss)
        gradients = {name: safe_get_full_grad(p) for name, p in module.named_parameters()}
        sharded.append([p.numel() == 0 for p in module.parameters()])
        results.append((loss.detach(), gradients, sharded))
        engine.destroy()
    torch.save(results, f"{file}.{processes.rank}.out")
    stop_processes()
    end_process(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
