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
