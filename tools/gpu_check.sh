#!/usr/bin/env bash
# Builds, tests and measures on a GPU machine with the Python packages that are there; needs no network and no venv.
#
#   tools/gpu_check.sh OUTDIR STAGE...
#
#   build       native modules with CUDA kernels and the simulated ones, kept in build/ between calls
#   test        tests that need a GPU, then those of the build and of the compiled kernels
#   sanitize    every kernel on small shapes under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#   bench:NAME  benchmarks/NAME.py, for example bench:layer_norm; benchmarks/run.py --list names them
#
# OUTDIR gets results.jsonl (a row a measurement and a row a stage) and gpu_check.log; both are appended to. A stage is
# stopped after STAGE_SECONDS (540). A failed stage does not stop the next; the exit code tells whether any failed.
# PYTHON names the interpreter (python3), LLMJP_COMMIT the commit where the copy has no git history.
set -uo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,13p' "$0" | sed -E 's/^# ?//'
  exit 2
fi
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

PYTHON=${PYTHON:-python3}
STAGE_SECONDS=${STAGE_SECONDS:-540}
LOG="$OUT/gpu_check.log"
RESULTS="$OUT/results.jsonl"
export LLMJP_COMMIT=${LLMJP_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
export PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
if ! command -v nvcc >/dev/null && [ -z "${CUDA_HOME:-}" ] && [ -x /usr/local/cuda/bin/nvcc ]; then
  export CUDA_HOME=/usr/local/cuda
fi
if [ -n "${CUDA_HOME:-}" ]; then
  PATH="$CUDA_HOME/bin:$PATH"
fi

# CMake directly: an installed setuptools may be too old for pyproject.toml, and nothing has to be installed.
stage_build() {
  local tree
  tree="build/$("$PYTHON" -c 'import sys; print(sys.implementation.cache_tag)')" || return
  cmake -S . -B "$tree" -G Ninja -DLLMJP_PYTHON="$(command -v "$PYTHON")" -DLLMJP_CUDA=ON -DLLMJP_TESTS=ON &&
    cmake --build "$tree" --parallel "${MAX_JOBS:-$(nproc)}" &&
    cmake --install "$tree" --prefix llmjp_ext --component package &&
    "$PYTHON" -m llmjp_ext
}

# Without a GPU all of its tests are skipped, which pytest calls a success.
require_gpu() {
  "$PYTHON" -c 'import sys, torch; torch.cuda.is_available() or sys.exit("torch sees no CUDA GPU")'
}

stage_test() {
  require_gpu &&
    "$PYTHON" -m pytest -q -m gpu tests &&
    "$PYTHON" -m pytest -q tests/test_build.py tests/test_kernel_reports.py
}

stage_sanitize() {
  local tool failed=0
  for tool in memcheck racecheck initcheck synccheck; do
    echo "--- compute-sanitizer $tool"
    # Every allocation is torch's own call, so that the sanitizer sees where each tensor ends.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$PYTHON" tools/sanitize.py || failed=1
  done
  return $failed
}

stage_bench() {
  "$PYTHON" benchmarks/run.py "$1" --device cuda --output "$RESULTS"
}

run_stage() {
  case $1 in
    build) stage_build ;;
    test) stage_test ;;
    sanitize) stage_sanitize ;;
    bench:?*) stage_bench "${1#bench:}" ;;
    *)
      echo "unknown stage '$1'; supported are build, test, sanitize and bench:NAME"
      return 2
      ;;
  esac
}

# `timeout` runs programs, not functions: a stage is this script called again for itself.
if [ -n "${LLMJP_GPU_CHECK_STAGE:-}" ]; then
  run_stage "$LLMJP_GPU_CHECK_STAGE"
  exit
fi

failed=0
for stage in "$@"; do
  echo "=== $stage, commit $LLMJP_COMMIT, $(date -u +%FT%TZ)" | tee -a "$LOG"
  start=$(date +%s)
  LLMJP_GPU_CHECK_STAGE="$stage" timeout --kill-after=10 "$STAGE_SECONDS" "$BASH" "$0" "$OUT" "$stage" 2>&1 | tee -a "$LOG"
  status=${PIPESTATUS[0]}
  seconds=$(($(date +%s) - start))
  if [ "$status" -ne 0 ]; then
    failed=1
  fi
  printf '{"stage": "%s", "commit": "%s", "exit_code": %d, "seconds": %d}\n' \
    "$stage" "$LLMJP_COMMIT" "$status" "$seconds" >>"$RESULTS"
  echo "=== $stage: exit code $status after $seconds s" | tee -a "$LOG"
done
exit $failed
