#!/usr/bin/env bash
# What a lent GPU machine will run, with its versions, on a CPU: Python 3.12, torch 2.11, triton 3.6
# and otherwise what `benchmarks/gpu_bundle.sh` brings along. From the root of a checkout:
#
#     bash benchmarks/gpu_rehearsal.sh FOLDER        # some 15 minutes, 8 GB in FOLDER
#
# The bundle; gpu.sh with tiny shapes; the kernels' tests on Triton's interpreter; the trainings of
# gpu_smoke.sh, killed and resumed; every kernel compiled ahead of time for sm_80, sm_90 or sm_100.
# That torch is the CUDA build of gigabytes, so CI does not do this: it rehearses with its own
# versions. The log of each is in FOLDER, the last line of each on the terminal, and the exit status
# is 1 if one failed.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
failed=0

part() { # NAME COMMAND...
  local name=$1
  shift
  "$@" >"$folder/$name.log" 2>&1
  local status=$?
  if [[ $status != 0 ]]; then
    failed=1
  fi
  echo "$name: status $status: $(grep -v '^ *$' "$folder/$name.log" | tail -n 1 | cut -c 1-160)"
}

python=$folder/venv/bin/python
if [[ ! -x $python ]]; then
  "${PYTHON312:-python3.12}" -m venv "$folder/venv" || exit 1
fi
# Triton 3.6's interpreter does not know numpy 2.4; rich is for the compiler's table alone.
part install "$python" -m pip install torch==2.11.0 triton==3.6.0 'numpy<2.4' rich
part bundle env PYTHON="${PYTHON:-python3}" bash benchmarks/gpu_bundle.sh "$folder/bundle"
export BUNDLE=$folder/bundle
part gpu env PYTHON="$python" bash benchmarks/gpu.sh --device cpu --quick --out "$folder/cpu.json"
export PYTHONPATH=.:kernels:data_tools:$folder/bundle/site
part tests "$python" -m pytest -q -p no:cacheprovider tests/kernels tests/discriminator/test_peers.py
part trainings env DIGITS="$folder/bundle/digits" "$python" -m benchmarks.gpu_smoke \
  --device cpu --folder "$folder/kept"
part compile "$python" -m benchmarks.aot --print --sample
exit $failed
