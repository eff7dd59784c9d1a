#!/usr/bin/env bash
# Train, or do another verb, on all GPUs of this machine, one process each:
#
#     launch/one_node.sh RECIPE --data DIR --out RUN [settings of python -m rg train]
#     launch/one_node.sh evaluate|explain|faithful|leakage|parts|compare|verify [what python -m rg takes behind that word]
#
# PROCESSES=N takes N processes instead, also on a machine without a GPU. They meet at MASTER_PORT (default: one that is
# free), so several runs may share the machine. --dry-run as the first argument prints the
# command and does nothing. Where no environment is active, that of `make`, .venv, is taken.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

[ $# -ge 1 ] || fail "expected a recipe (python -m rg recipes), or evaluate, explain, faithful, leakage, parts, compare, verify"
check_port
[ -z "${MASTER_PORT:-}" ] || listen_on "$MASTER_PORT"
read_words "$@"
start deepspeed --no_local_rank --master_port "${MASTER_PORT:-$(free_port)}" ${PROCESSES:+--num_gpus "$PROCESSES"} \
    --module rg "${words[@]}"
