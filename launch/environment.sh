# Sourced by the scripts here. Where no environment is active, that of `make`, .venv, is taken; where there is no GPU,
# DeepSpeed is told so.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -d "$root/.venv/bin" ]; then
    PATH=$root/.venv/bin:$PATH
fi
if [ -z "${DS_ACCELERATOR:-}" ] && ! command -v nvidia-smi >/dev/null; then
    export DS_ACCELERATOR=cpu
fi

# fail MESSAGE: the arguments are wrong.
fail() {
    echo "${0##*/}: error: $*" >&2
    exit 2
}

# read_words WORDS ...: what stands behind `python -m rg`, as the array words, and its verb; without a verb, a recipe is
# to be trained.
read_words() {
    case $1 in
        train | evaluate | explain | faithful | leakage | parts | compare | verify) words=("$@") ;;
        *) words=(train "$@") ;;
    esac
    verb=${words[0]}
}

# read_hosts HOSTFILE: the hosts of a file for DeepSpeed, as the array hosts; anything else in it is refused.
read_hosts() {
    local problem
    [ -f "$1" ] || fail "$1: no such hostfile"
    problem=$(awk '
        function refuse(reason) { print "line " NR ": " reason; exit }
        /\r$/ { refuse("ends as on Windows; convert the file with dos2unix") }
        /^[[:space:]]*(#|$)/ { next }
        { sub(/[[:space:]]+#.*/, ""); sub(/[[:space:]]+$/, "") }
        !/^[[:space:]]*[^[:space:]]+[[:space:]]+slots=[0-9]+$/ { refuse("expected HOST slots=N, got " $0) }
        $1 ~ /@|^[^:]*:[0-9]+$/ { refuse("expected a host alone, got " $1 "; user and port belong into ~/.ssh/config") }
        $2 ~ /=0+$/ { refuse("expected at least 1 slot, got " $2) }
        $1 in lines { refuse($1 " is there twice, first in line " lines[$1]) }
        { lines[$1] = NR }
    ' "$1")
    [ -z "$problem" ] || fail "$1: $problem"
    mapfile -t hosts < <(awk '!/^[[:space:]]*(#|$)/ { print $1 }' "$1")
    [ ${#hosts[@]} -ge 1 ] || fail "$1: expected lines HOST slots=N"
}

# check_port: MASTER_PORT, if it is set, is a port.
check_port() {
    [[ ${MASTER_PORT:-29500} =~ ^[1-9][0-9]{0,4}$ && ${MASTER_PORT:-29500} -le 65535 ]] ||
        fail "MASTER_PORT: expected a number from 1 to 65535, got '$MASTER_PORT'"
}

# free_port: one that nobody listens on here.
free_port() {
    python -c 'import socket; print(socket.create_server(("", 0)).getsockname()[1])'
}

# listen_on PORT: refuse one that another program on this machine listens on, or that this user may not listen on.
listen_on() {
    local reason
    reason=$(python -c '
import socket, sys
try:
    socket.create_server(("", int(sys.argv[1])))
except PermissionError:
    print("is not for this user; those from 1024 on are")
except OSError:
    print("is taken on this machine, perhaps by another run")' "$1")
    [ -z "$reason" ] || fail "MASTER_PORT: $1 $reason; set MASTER_PORT to another, on all machines"
}

# show COMMAND ...: print it; with --dry-run that is all.
show() {
    if [ "$dry_run" ]; then
        printf '%q ' "$@"
        echo
        exit
    fi
    { printf '+'; printf ' %q' "$@"; echo; } >&2
}

# start COMMAND ...: run DeepSpeed such that a signal makes the ranks save. Its runner would die and leave them running,
# or kill them after 30 s. They alone get the signal, and their exit code becomes that of the script; a second signal goes
# to DeepSpeed.
start() {
    local deepspeed code=0 stopping=
    show "$@"
    setsid "$@" &
    deepspeed=$!
    trap '{ [ -z "$stopping" ] && stopping=yes && stop_ranks; } || kill -TERM -- "-$deepspeed"' TERM INT HUP
    while kill -0 "$deepspeed" 2>/dev/null; do
        wait "$deepspeed" || true # a signal ends this, too
    done
    wait "$deepspeed" || code=$?
    exit "$code"
}

# Of this machine: the children of the launcher, which is the child of the runner.
stop_ranks() {
    pkill -TERM -P "$(pgrep -d, -P "$deepspeed")"
}

dry_run=
if [ "${1:-}" = --dry-run ]; then
    dry_run=yes
    shift
fi
