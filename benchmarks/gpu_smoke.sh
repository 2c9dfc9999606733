#!/usr/bin/env bash
# The first run on a GPU, in one command, from the root of a checkout:
#
#     bash benchmarks/gpu_smoke.sh
#
# Real trainings by the commands that users type: pre-training, then 30 iterations of fine-tuning
# that are killed in the middle (SIGKILL) and go on from their checkpoint, an evaluation, pictures
# and the report; and where there are two GPUs the same under `fasttrain launch --gpus 2` with ZeRO
# 2, one of whose processes is killed. At most 4 minutes in all (BUDGET: seconds). A line says what
# each step did; the exit status is 0 when all went well, 1 when a step failed, whose last lines are
# printed, and 2 where there is no GPU.
#
# Nothing is installed: python3 (or $PYTHON) needs what fasttrain imports. --device cpu rehearses it
# with a narrower network, on two processes of this machine. --folder DIR keeps what was written.
# --steps pretrain,two takes some of pretrain, one, look and two. What comes after -- goes to all
# trainings: -- kernels=reference
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=".:kernels:data_tools${PYTHONPATH:+:$PYTHONPATH}"
export TRITON_INTERPRET=0 PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.gpu_smoke "$@"
