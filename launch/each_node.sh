#!/usr/bin/env bash
# Train, or do another verb, on several machines without ssh: this line on each, with its own NODE_RANK.
#
#     launch/each_node.sh HOSTFILE NODE_RANK RECIPE --data DIR --out RUN [settings of python -m rg train]
#     launch/each_node.sh HOSTFILE NODE_RANK evaluate|explain|faithful|leakage|parts|compare|verify [what python -m rg takes behind that word]
#
# HOSTFILE has a line "HOST slots=N" for each machine, N the processes it takes (its GPUs); NODE_RANK is the place of this
# machine in it, from 0. MASTER_ADDR (default: the first host) and MASTER_PORT (29500) are where the processes meet: each
# run on the first machine needs a port of its own.
# --dry-run as the first argument prints the command. On machines whose own name resolves to 127.0.0.1 gloo needs
# GLOO_SOCKET_IFNAME.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

[ $# -ge 3 ] || fail "expected a hostfile, a node rank and a recipe (python -m rg recipes) or verb"
hostfile=$1 node_rank=$2
shift 2
read_hosts "$hostfile"
check_port
[[ $node_rank =~ ^[0-9]+$ && $node_rank -lt ${#hosts[@]} ]] ||
    fail "NODE_RANK: expected 0 to $((${#hosts[@]} - 1)) for the ${#hosts[@]} hosts of $hostfile, got $node_rank"
[ "$node_rank" != 0 ] || listen_on "${MASTER_PORT:-29500}"

read_words "$@"
start deepspeed --hostfile "$hostfile" --no_ssh --node_rank "$node_rank" --master_addr "${MASTER_ADDR:-${hosts[0]}}" \
    --master_port "${MASTER_PORT:-29500}" --no_local_rank --module rg "${words[@]}"
