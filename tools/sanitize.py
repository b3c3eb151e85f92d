"""Runs every CUDA kernel once on small shapes, for compute-sanitizer (tools/gpu_check.sh sanitize).

Shapes are chosen so that each path of a launcher is taken: every tile width, the looping kernels,
rows that are not 16-byte aligned, strided rows, with and without residual and bias. Results are
compared loosely with torch's own, to show that the kernels did run; tests/ compare exactly.
"""

import itertools
import sys

import torch

import llmjp_ext

# The widest row of each tile, rows that only the looping kernels take, and two unaligned ones.
TILE_WIDTHS = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576)
LAYER_NORM_WIDTHS = (7, 1023, *TILE_WIDTHS, 32768)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROWS = 5


def sanitize_layer_norm(device: torch.device) -> int:
    """Forward and backward of layer_norm on `device`; returns the number of calls made."""
    calls = 0
    for width, dtype, with_residual in itertools.product(LAYER_NORM_WIDTHS, DTYPES, (False, True)):
        has_bias = width % 2 == 0
        padded = torch.randn(ROWS, width + 16, device=device, dtype=dtype)
        x = padded[:, :width].detach().requires_grad_()
        residual = torch.randn(ROWS, width, device=device, dtype=dtype, requires_grad=True)
        weight = torch.randn(width, device=device, dtype=dtype, requires_grad=True)
        bias = (
            torch.randn(width, device=device, dtype=dtype, requires_grad=True) if has_bias else None
        )
        if with_residual:
            y, r = llmjp_ext.layer_norm(x, weight, bias, residual=residual)
            (y.float().sum() + r.float().sum()).backward()
            row = (x + residual).detach()
        else:
            y = llmjp_ext.layer_norm(x, weight, bias)
            y.float().sum().backward()
            row = x.detach()
        expected = torch.nn.functional.layer_norm(row, (width,), weight, bias)
        torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        calls += 2
    return calls


def main() -> int:
    """Runs all kernels; exits with 1 where there is no GPU."""
    if not torch.cuda.is_available():
        print("tools/sanitize.py needs a CUDA GPU; none was found", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    calls = sanitize_layer_norm(torch.device("cuda"))
    torch.cuda.synchronize()
    print(f"layer_norm: {calls} calls")
    return 0


if __name__ == "__main__":
    sys.exit(main())
