#!/usr/bin/env bash
# The benchmark on a GPU, in one command, from the root of a checkout:
#
#     bash benchmarks/gpu.sh
#
# In at most 10 minutes: first `benchmarks/gpu_smoke.sh`, real trainings that are killed and resumed,
# in at most 4 of them (SMOKE=0 leaves it out); the kernels' tests on the compiled kernels; copy bandwidth and matrix rate;
# each op at the published networks' shapes, forward and backward, as eager, torch.compile, library
# and ours; the generator and the whole step. It writes benchmarks/results/<gpu>.json and .md (with
# a copy of both in $OUT, if that is set), and then `python -m benchmarks.page` puts the table into
# docs/performance.md. The exit status is 1 if a test failed, a result is wrong or a part could not
# run.
#
# Nothing is installed: python3 (or $PYTHON) needs torch, triton, numpy, pytest and what else the
# tests and `fasttrain profile` import. BUDGET: seconds for everything, 540 by default; what does
# not fit is named in the result. When the
# smoke test fails the rest is measured all the same. COMMIT: the commit's name, where the tree has no history.
# Arguments go on to `python -m benchmarks.gpu`: --only attention, --parts ops, --out FILE.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=".:kernels:data_tools${PYTHONPATH:+:$PYTHONPATH}"
export TRITON_INTERPRET=0 PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "benchmarks/gpu.sh: $python sees no CUDA device (or no torch): nothing to measure here" >&2
  exit 2
fi
if [[ -n ${OUT:-} ]]; then
  mkdir -p "$OUT"
fi
status=0
if [[ ${SMOKE:-1} != 0 ]]; then
  budget=${BUDGET:-540}
  BUDGET=$((budget < 240 ? budget : 240)) PYTHON=$python bash benchmarks/gpu_smoke.sh |
    tee "${OUT:-/dev/null}${OUT:+/smoke.txt}" || status=1
  BUDGET=$((budget - SECONDS > 60 ? budget - SECONDS : 60))
  export BUDGET
fi
"$python" -m benchmarks.gpu "$@" || status=$?
exit "$status"
