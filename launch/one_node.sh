#!/usr/bin/env bash
# Train on all GPUs of this machine, one process each:
#
#     launch/one_node.sh RECIPE --data DIR --out RUN [settings of python -m rg train]
#
# PROCESSES=N takes N processes instead, also on a machine without a GPU. --dry-run as the first argument prints the
# command and does nothing. Where no environment is active, that of `make`, .venv, is taken.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -d "$root/.venv/bin" ]; then
    PATH=$root/.venv/bin:$PATH
fi

command=(deepspeed --no_local_rank ${PROCESSES:+--num_gpus "$PROCESSES"} --module rg train)
if [ "${1:-}" = --dry-run ]; then
    shift
    printf '%q ' "${command[@]}" "$@"
    echo
    exit
fi
if ! command -v nvidia-smi >/dev/null; then
    export DS_ACCELERATOR=cpu
fi
set -x
exec "${command[@]}" "$@"
