#!/usr/bin/env bash
# Train, or do another verb (evaluate, explain, faithful, leakage, parts, compare, verify), on several machines by torchrun: this line on each.
#
#     NODES=4 NODE_RANK=0 MASTER_ADDR=HOST launch/torchrun.sh RECIPE --data DIR --out RUN [settings of rg train]
#     NODES=4 NODE_RANK=0 MASTER_ADDR=HOST launch/torchrun.sh evaluate RUN --data DIR
#     NODES=2:4 MASTER_ADDR=HOST RESTARTS=3 launch/torchrun.sh RECIPE --data DIR --out RUN [settings of rg train]
#
# NODES        number of machines, or MIN:MAX: elastic
# NODE_RANK    place of this machine, from 0 (default: SLURM_NODEID); needed unless RESTARTS or MIN:MAX are given
# MASTER_ADDR  machine 0, where all meet; MASTER_PORT (29500; of a single machine one that is free): one for
#              each run
# PROCESSES    processes on this machine (default: its GPUs, or 1)
# RESTARTS     how often all processes are started again, from the newest checkpoint, when one fails (default 0)
#
# --dry-run as the first argument prints the command. Elastic runs, those with MIN:MAX or RESTARTS, use torchrun's c10d
# rendezvous and, to train, --auto-resume. That compares the wall clocks of the machines: a machine whose clock is off by more than
# 15 s is taken for dead, so let NTP run. If the machine at MASTER_ADDR is lost, such a run ends. torchrun ends with 1
# whatever its processes ended with. On machines whose own name resolves to 127.0.0.1 gloo needs GLOO_SOCKET_IFNAME.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

[ $# -ge 1 ] || fail "expected a recipe (python -m rg recipes) or verb"
read_words "$@"
[[ ${NODES:-} =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || fail "NODES: expected a number or MIN:MAX, got '${NODES:-}'"
NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-}}
[[ ${RESTARTS:=0} =~ ^[0-9]+$ ]] || fail "RESTARTS: expected a number, got '$RESTARTS'"
[ "${MASTER_ADDR:-}" ] || fail "MASTER_ADDR: expected the address of machine 0"
check_port
if [ "$NODES" = 1 ] && [ -z "${MASTER_PORT:-}" ]; then MASTER_PORT=$(free_port); fi
address=$MASTER_ADDR port=${MASTER_PORT:-29500}
[ "$NODE_RANK" != 0 ] || listen_on "$port"
if [ -z "${PROCESSES:-}" ]; then
    if command -v nvidia-smi >/dev/null; then PROCESSES=gpu; else PROCESSES=1; fi
fi

rendezvous=()
if [[ $NODES == *:* || $RESTARTS -gt 0 ]]; then
    # torchrun keeps one store for all its restarts, and the ranks find the addresses of their predecessors in it
    # (pytorch issue 135712); so every time they make a new one.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    rendezvous=(--rdzv-backend c10d --rdzv-endpoint "$address:$port" --max-restarts "$RESTARTS")
    if [ "$NODE_RANK" ]; then # else torchrun compares MASTER_ADDR with what the name of this machine resolves to
        rendezvous+=(--rdzv-conf "is_host=$([ "$NODE_RANK" = 0 ] && echo true || echo false)")
    fi
    [ "$verb" != train ] || words+=(--auto-resume)
else
    [[ $NODE_RANK =~ ^[0-9]+$ && $NODE_RANK -lt $NODES ]] ||
        fail "NODE_RANK: expected 0 to $((NODES - 1)), got '$NODE_RANK'"
    rendezvous=(--node-rank "$NODE_RANK" --master-addr "$address" --master-port "$port")
fi

# How long the ranks may take to save after a signal; torchrun's default is 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}
command=(torchrun --nnodes "$NODES" --nproc-per-node "$PROCESSES" "${rendezvous[@]}" --module rg "${words[@]}")
show "${command[@]}"
exec "${command[@]}"
