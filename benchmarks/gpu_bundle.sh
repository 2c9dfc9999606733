#!/usr/bin/env bash
# What `benchmarks/gpu.sh` needs on a GPU machine without a network, in one folder:
#
#     bash benchmarks/gpu_bundle.sh                                  # build/gpu-bundle
#     bash benchmarks/gpu_bundle.sh FOLDER --without pillow pytest   # smaller: the machine has these
#
# Run it anywhere with a network, Python 3.11 or later and pip; take the folder along in the checkout
# (the goldens are there already). It holds wheels for Python 3.12 on x86-64 Linux: what fasttrain
# and the kernels' tests import and an installation of torch, triton and numpy lacks, the feature
# networks' weights among them; and the digits, where this Python has scikit-learn. At most 64 MiB:
# every wheel is printed with its size, and the exit status is 1 above that. gpu.sh installs of it
# what the machine's Python lacks.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu.bundle make "$@"
