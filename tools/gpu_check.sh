#!/usr/bin/env bash
# Builds, tests and measures on a GPU machine with the Python packages that are there; needs no network and no venv.
#
#   tools/gpu_check.sh OUTDIR [STAGE...]     tools/gpu_check.sh --help     tools/gpu_check.sh OUTDIR --list
#
# PYTHON names the interpreter (python3), LLMJP_COMMIT the commit where the copy has no git history.
set -euo pipefail

cd_to=$(dirname "${BASH_SOURCE[0]}")/..
export PYTHONUNBUFFERED=1
PYTHONPATH="$(cd "$cd_to" && pwd):$(cd "$cd_to" && pwd)/python${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
if ! command -v nvcc >/dev/null && [ -z "${CUDA_HOME:-}" ] && [ -x /usr/local/cuda/bin/nvcc ]; then
  export CUDA_HOME=/usr/local/cuda
fi
if [ -n "${CUDA_HOME:-}" ]; then
  export PATH="$CUDA_HOME/bin:$PATH"
fi
exec "${PYTHON:-python3}" "$cd_to/tools/gpu_check.py" "$@"
