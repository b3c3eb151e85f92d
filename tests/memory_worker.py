"""Measures the memory of training steps on the CPU; writes JSON beside what was predicted.

States are the tensors that live between two steps; the peak adds the most that the allocator had
given out within a step, as torch's profiler saw each allocation.
"""

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from llmjp.config import ModelConfig
from llmjp.training import engine as engines
from llmjp.training.memory import predict
from llmjp.training.processes import Processes, end_process, start_processes, stop_processes
from llmjp.training.settings import TrainSettings

CONFIG = ModelConfig(
    vocab_size=1024, n_positions=256, n_embd=256, n_layer=4, n_head=2, n_inner=1024
)
MICRO, LENGTH = 4, 256
CASES = [(1, "bf16", False, False), (2, "bf16", True, True), (3, "bf16", False, False)]
MORE = [  # with a second argument
    *((0, "fp32", False, False), (2, "bf16", False, False), (2, "bf16", True, False)),
    *((3, "bf16", True, False), (3, "bf16", True, True)),
    # The last: after close_engine() DeepSpeed still holds its gradients.
    (1, "bf16", False, True),
]


def living() -> int:
    """Bytes of all tensors' storages."""
    gc.collect()
    found = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    # Python does not know a gradient that nobody has asked for.
    found += [each.grad for each in found if each.is_leaf and each.grad is not None]
    storages = (each.untyped_storage() for each in found)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def highest(prof: Any) -> int:
    """The most bytes that were given out within a profile."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        prof.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    )
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def measure(
    stage: int, dtype: str, recompute: bool, fp32_gradients: bool, processes: Processes
) -> dict[str, Any]:
    """One case: two steps of two micro-batches, the second step measured."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ds.json"
        # The bucket is taken whole: at its default it would hide everything else. The fused AdamW,
        # which GPUs use, makes no copies of its own.
        changed = {
            "zero_optimization": {"reduce_bucket_size": 100_000},
            "optimizer": {"params": {"fused": True}},
        }
        file.write_text(json.dumps(changed))
        settings = TrainSettings(
            data=["-"],
            output="-",
            zero_stage=stage,
            dtype=dtype,
            recompute=recompute,
            fp32_gradients=fp32_gradients,
            global_batch=2 * MICRO * processes.world,
            micro_batch=MICRO,
            deepspeed_config=str(file),
        )
        batches = engines.Batches.of(settings, processes.world)
        ds_config = engines.deepspeed_config(settings, batches, dtype)
    before = living()
    engine = engines.build_engine(settings, CONFIG, ds_config, processes, None)
    parameters = {p.untyped_storage().data_ptr() for p in engine.module.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, CONFIG.vocab_size, (MICRO, LENGTH))
    states = peak = 0
    for step in range(2):
        for _ in range(2):
            at_start = living() - before
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
                saved.clear()
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    loss = engine(ids, ids)
                engine.backward(loss)
                del loss
                if step:
                    states = max(states, living() - before)
                engine.step()
            if step:
                peak = max(peak, at_start + highest(prof))
    engines.close_engine(engine)
    plan = predict(
        CONFIG,
        ds_config["zero_optimization"],
        processes=processes.world,
        micro_batch=MICRO,
        accumulation=batches.accumulation,
        length=LENGTH,
        itemsize=engines.TORCH_DTYPES[dtype].itemsize,
        recompute=recompute,
        fp32_gradients=fp32_gradients,
    )
    return {
        "case": [stage, dtype, recompute, fp32_gradients],
        "states": [plan.states, states],
        "kept": [plan.kept, sum(saved.values())],
        "peak": [plan.peak, peak],
    }


if __name__ == "__main__":
    group = start_processes()
    rows = [measure(*case, group) for case in CASES + (MORE if sys.argv[2:] else [])]
    if group.first:
        Path(sys.argv[1]).write_text(json.dumps(rows))
    stop_processes()
    end_process(0)
