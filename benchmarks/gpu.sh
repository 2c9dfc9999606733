#!/usr/bin/env bash
# The benchmark on a GPU, in one command, from the root of a checkout:
#
#     bash benchmarks/gpu.sh                      # at most 9 minutes
#     bash benchmarks/gpu.sh                      # again: the parts that are not done
#     bash benchmarks/gpu.sh --parts profile,fd   # these, by name
#
# Parts in order of value, each with its own limit (benchmarks/gpu/session.py): check, every kernel
# compiled, against float64; rates, copy bandwidth and matrix rate; ops, each op at the published
# networks' shapes, forward and backward, as eager, torch.compile, library and ours; profile, the
# generator and the whole step with their memory; discriminator; fd, a short training beside the same
# in float32; tests, the kernels' tests on the compiled kernels; runs, benchmarks/gpu_smoke.sh,
# trainings that are killed and resumed. The file benchmarks/results/<gpu>.json and its table .md (with a copy
# of both in $OUT, if that is set) are rewritten after every part and every op. A second call on another machine of
# the same kind goes on with the file where that has been put back. Then `python -m benchmarks.page` puts
# the table into docs/performance.md. The exit status is 1 if a test failed, a result is wrong or a
# part could not run.
#
# Where the network is missing, the folder of `bash benchmarks/gpu_bundle.sh` brings along what
# python3 (or $PYTHON) lacks: it is looked for in $BUNDLE, or build/gpu-bundle. BUDGET: seconds for
# a call, 540 by default. COMMIT: the commit's name, where the tree has no history.
# Other arguments go on to `python -m benchmarks.gpu`: --only attention, --out FILE.
set -euo pipefail
cd "$(dirname "$0")/.."
export TRITON_INTERPRET=0 PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
started=$SECONDS
bundle=${BUNDLE:-build/gpu-bundle}
if [[ -d $bundle/wheels ]]; then
  site=$("$python" -m benchmarks.gpu.bundle site "$bundle")
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
  if [[ -d $bundle/digits ]]; then
    DIGITS=$(cd "$bundle/digits" && pwd)
    export DIGITS
  fi
fi
export PYTHONPATH=".:kernels:data_tools${PYTHONPATH:+:$PYTHONPATH}"
if [[ " $* " != *" --device cpu "* ]] &&
  ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "benchmarks/gpu.sh: $python sees no CUDA device (or no torch): nothing to measure here" >&2
  exit 2
fi
if [[ -n ${OUT:-} ]]; then
  mkdir -p "$OUT"
fi
BUDGET=$((${BUDGET:-540} - (SECONDS - started)))
export BUDGET
exec "$python" -m benchmarks.gpu "$@"
