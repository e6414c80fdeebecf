#!/usr/bin/env bash
# Run a tune script on this node of a job, whoever started it: finds the node's place in the job and passes SIGTERM on.
#     bash examples/launch/on_each_node.sh examples/mcore/qwen25/tune_qwen25_7b_4k_full_pack.sh [further flags]
# Sets NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT and NPUS_PER_NODE from Slurm's or Volcano's variables; those that
# are set already stay as they are. Ends with the script's status.
set -euo pipefail

die() { printf 'on_each_node.sh: error: %s\n' "$*" >&2; exit 2; }

[ $# -ge 1 ] && [ -f "$1" ] || die "give a tune script that exists, then its flags (got: ${1:-nothing})"

if [ -n "${SLURM_JOB_ID:-}" ]; then
    [ -n "${SLURM_NODEID:-}" ] || die "run it by srun, one task on each node: Slurm has set no SLURM_NODEID"
    NNODES="${NNODES:-${SLURM_NNODES:-$SLURM_JOB_NUM_NODES}}"
    NODE_RANK="${NODE_RANK:-$SLURM_NODEID}"
    # Read whole and then cut: `| head -n 1` would close the pipe on scontrol and fail now and then.
    hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
    MASTER_ADDR="${MASTER_ADDR:-${hosts%%$'\n'*}}"
    # Two jobs may share a node: each takes a port of its own.
    MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
elif [ -n "${VC_TASK_INDEX:-}" ]; then
    # Volcano's plugins env and svc; the task is called 'node' in tune_volcano.yaml.
    [ -n "${VC_NODE_HOSTS:-}" ] || die "no VC_NODE_HOSTS: the job needs Volcano's svc plugin and a task called 'node'"
    NNODES="${NNODES:-$VC_NODE_NUM}"
    NODE_RANK="${NODE_RANK:-$VC_TASK_INDEX}"
    MASTER_ADDR="${MASTER_ADDR:-${VC_NODE_HOSTS%%,*}}"
    MASTER_PORT="${MASTER_PORT:-6000}"
fi
: "${NNODES:=1}" "${NODE_RANK:=0}" "${MASTER_ADDR:=localhost}" "${MASTER_PORT:=6000}" "${NPUS_PER_NODE:=8}"
export NNODES NODE_RANK MASTER_ADDR MASTER_PORT NPUS_PER_NODE
echo "node $NODE_RANK of $NNODES: $(hostname), $NPUS_PER_NODE devices, first node $MASTER_ADDR:$MASTER_PORT"

# A pod's name may be known some time after the pod is up.
for ((waited = 0; waited < ${SECONDS_FOR_NAMES:-300}; waited += 2)); do
    getent hosts "$MASTER_ADDR" >/dev/null && break
    sleep 2
done
getent hosts "$MASTER_ADDR" >/dev/null || die "$MASTER_ADDR, the name of the first node, is not known here"

# The script gets a process group of its own. SIGTERM goes to torchrun alone: the shells around it must live until the
# ranks have saved, and so must the one that writes the log.
set -m
bash "$@" &
script=$!
set +m
pass_on() {
    echo "node $NODE_RANK: SIGTERM, the ranks finish their step and save"
    pkill -TERM -g "$script" -f torchrun || kill -TERM -- "-$script" || true
}
trap pass_on TERM INT
status=0
wait "$script" || status=$?
while kill -0 "$script" 2>/dev/null; do   # wait returns at a signal, before the script has ended
    status=0
    wait "$script" || status=$?
done
exit "$status"
