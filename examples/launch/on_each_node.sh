#!/usr/bin/env bash
# Run a tune script on one node of a Slurm or Volcano job and forward SIGTERM to it.
#     bash examples/launch/on_each_node.sh examples/mcore/qwen25/tune_qwen25_7b_4k_full_pack.sh [additional flags]
# Sets NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT and NPUS_PER_NODE from the variables of Slurm or Volcano, unless they are
# already set. The exit status is that of the script.
set -euo pipefail

die() { printf 'on_each_node.sh: error: %s\n' "$*" >&2; exit 2; }

[ $# -ge 1 ] && [ -f "$1" ] || die "give a tune script that exists, then its flags (got: ${1:-nothing})"

if [ -n "${SLURM_JOB_ID:-}" ]; then
    [ -n "${SLURM_NODEID:-}" ] || die "run it by srun, one task on each node: Slurm has set no SLURM_NODEID"
    NNODES="${NNODES:-${SLURM_NNODES:-$SLURM_JOB_NUM_NODES}}"
    NODE_RANK="${NODE_RANK:-$SLURM_NODEID}"
    # Not `scontrol | head -n 1`: head closes the pipe early, scontrol may then fail, and pipefail ends this script.
    hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
    MASTER_ADDR="${MASTER_ADDR:-${hosts%%$'\n'*}}"
    # Two jobs may share a node, so each job uses its own port.
    MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
elif [ -n "${VC_TASK_INDEX:-}" ]; then
    # Variables of Volcano's plugins env and svc. VC_NODE_* exist because the task is named 'node' in tune_volcano.yaml.
    [ -n "${VC_NODE_HOSTS:-}" ] || die "no VC_NODE_HOSTS: the job needs Volcano's svc plugin and a task called 'node'"
    NNODES="${NNODES:-$VC_NODE_NUM}"
    NODE_RANK="${NODE_RANK:-$VC_TASK_INDEX}"
    MASTER_ADDR="${MASTER_ADDR:-${VC_NODE_HOSTS%%,*}}"
    MASTER_PORT="${MASTER_PORT:-6000}"
fi
: "${NNODES:=1}" "${NODE_RANK:=0}" "${MASTER_ADDR:=localhost}" "${MASTER_PORT:=6000}" "${NPUS_PER_NODE:=8}"
export NNODES NODE_RANK MASTER_ADDR MASTER_PORT NPUS_PER_NODE
echo "node $NODE_RANK of $NNODES: $(hostname), $NPUS_PER_NODE devices, first node $MASTER_ADDR:$MASTER_PORT"

# The host name of a pod may become resolvable some time after the pod has started.
for ((waited = 0; waited < ${SECONDS_FOR_NAMES:-300}; waited += 2)); do
    getent hosts "$MASTER_ADDR" >/dev/null && break
    sleep 2
done
getent hosts "$MASTER_ADDR" >/dev/null || die "$MASTER_ADDR, the name of the first node, is not known here"

# The script runs in its own process group. Only torchrun receives SIGTERM: the surrounding shells, including the one that
# writes the log, must stay alive until the ranks have saved.
set -m
bash "$@" &
script=$!
set +m
forward_sigterm() {
    echo "node $NODE_RANK: SIGTERM; the ranks finish their step and save a checkpoint"
    pkill -TERM -g "$script" -f torchrun || kill -TERM -- "-$script" || true
}
trap forward_sigterm TERM INT
status=0
wait "$script" || status=$?
while kill -0 "$script" 2>/dev/null; do   # a signal ends wait before the script has ended
    status=0
    wait "$script" || status=$?
done
exit "$status"
