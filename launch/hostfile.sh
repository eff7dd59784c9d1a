#!/usr/bin/env bash
# Train, or do another verb, on several machines that this one reaches by ssh without a password, started by pdsh:
#
#     launch/hostfile.sh HOSTFILE RECIPE --data DIR --out RUN [settings of python -m rg train]
#     launch/hostfile.sh HOSTFILE evaluate|explain|faithful|leakage|parts|compare|verify [what python -m rg takes behind that word]
#
# HOSTFILE has a line "HOST slots=N" for each machine, N the processes it takes (its GPUs). Code, environment, data and
# run folder must be found at the same places everywhere. --dry-run as the first argument prints the command.
#
# MASTER_ADDR (default: the first host) and MASTER_PORT (29500) are where the processes meet, each run on the first
# machine by a port of its own; every host must be able to resolve the address, which a name that only ~/.ssh/config
# knows is not. Of the variables set here the other machines see NCCL_*, GLOO_*, TORCH_*, OMP_*, DS_ACCELERATOR, DS_LOG_LEVEL, PYTHON* and UCX_*, and the lines NAME=VALUE of the
# files .deepspeed_env in the home and the working directory (DS_ENV_FILE: another name). They stand in command lines
# that everyone on those machines can read, so credentials do not belong there; on machines whose own name resolves to
# 127.0.0.1 gloo needs GLOO_SOCKET_IFNAME.
set -euo pipefail
exported=$(compgen -e)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

[ $# -ge 2 ] || fail "expected a hostfile and a recipe (python -m rg recipes) or verb"
hostfile=$1
shift
read_hosts "$hostfile"
check_port
master=${MASTER_ADDR:-${hosts[0]}}
port=${MASTER_PORT:-29500}
bin=$(dirname "$(command -v deepspeed || fail "deepspeed is not installed here")")
# DeepSpeed writes both into a remote command line as they are.
for path in "$PWD" "$bin"; do
    [[ $path =~ ^[A-Za-z0-9_@+=:,./-]+$ ]] || fail "$path: a path with such characters does not reach other hosts"
done

# Words go through pdsh, which replaces %, and a shell on the other side; DeepSpeed puts double quotes around those with
# a blank and escapes the double quotes within.
quote() {
    local word=${1//%/%%}
    case $word in
        *' '*) printf '%s' "$word" | sed 's/[\\$`]/\\&/g' ;;
        *) printf "'%s'" "${word//\'/\'\\\'\'}" ;;
    esac
}

read_words "$@"
for place in "${!words[@]}"; do
    words[place]=$(quote "${words[place]}")
done

# The file that DeepSpeed takes variables from: open as descriptor 9, its name gone already.
variables=$(mktemp)
exec 9<"$variables"
{
    echo "PATH=$bin:\$PATH"
    for name in $exported; do
        case $name in
            NCCL_* | GLOO_* | TORCH_* | OMP_* | DS_ACCELERATOR | DS_LOG_LEVEL)
                printf '%s=%s\n' "$name" "$(printf '%s' "${!name//%/%%}" | sed 's/[\\$`"]/\\&/g')"
                ;;
        esac
    done
    name=${DS_ENV_FILE:-.deepspeed_env}
    for file in "$HOME/$name" "./$name"; do
        if [ -f "$file" ]; then
            grep -E '^[A-Za-z_][A-Za-z0-9_]*=' "$file" || true
        fi
    done
} >"$variables"
rm "$variables"
export DS_ENV_FILE=/dev/fd/9
# A host that is lost ends its ssh within a minute, not never.
export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=15 -o ServerAliveCountMax=3 ${PDSH_SSH_ARGS_APPEND:-}"

# In the place of that of environment.sh: on all machines.
# shellcheck disable=SC2329 # a trap of `start` calls it
stop_ranks() {
    local launcher="^[^ ]+ -u -m deepspeed.launcher.launch .*--master_addr=$master --master_port=$port "
    pdsh -R ssh -S -w "$(IFS=,; echo "${hosts[*]}")" "pkill -TERM -P \$(pgrep -d, -f '$launcher')"
}

start deepspeed --hostfile "$hostfile" --launcher pdsh --force_multi --master_addr "$master" --master_port "$port" \
    --no_local_rank --module rg "${words[@]}"
