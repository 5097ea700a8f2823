#!/bin/bash
# A denoise command on a Ray cluster that lives as long as a Slurm job: its head on the first node, workers on all.
#
#   sbatch --nodes 3 --cpus-per-task 16 --gpus-per-node 4 --time 8:00:00 slurm.sh study run ssdn-table1 --budget short
#   scancel --batch --signal=TERM JOB       # saves a checkpoint first; plain scancel ends Ray at once
#
# Submitted again, the same job goes on where it stopped. 120 s before the time limit denoise gets SIGTERM.
#
# It assumes that the nodes share the folder in which it is submitted (for checkpoints and shards), the environment with
# this package (active at sbatch, or .venv in that folder) and the home folder (for Ray's token, ~/.ray/auth_token), and
# that they reach each other at any port. Several jobs may share a node. More in docs/cluster.md.
#
#SBATCH --job-name=denoise
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

JOIN_SECONDS=180 # that Ray gets to start on all nodes: a first import from a shared disk is slow
STOP_SECONDS=60
# A step gets all processors and GPUs that the job has on a node, beside other steps.
STEP=(srun --overlap --export=ALL --cpu-bind=none --ntasks-per-node=1)

say() {
  echo "slurm.sh: $*" >&2
}

# On each node: run Ray until standard input ends. `ray stop` is not for us: it would end that of other jobs as well.
ray_node() {
  local folder=$RAY_FOLDER-$SLURM_NODEID host=${RAY_ADDRESS%:*} port=${RAY_ADDRESS##*:} address interface options
  mkdir -m 700 "$folder" || return
  options=(--block --temp-dir="$folder" --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0)
  options+=(--num-cpus="${SLURM_CPUS_ON_NODE:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
  if [ "$SLURM_NODEID" = 0 ]; then
    address=$host
    options+=(--head --port="$port" --dashboard-host=127.0.0.1 --disable-usage-stats)
    options+=(--dashboard-port="$DASHBOARD_PORT" --ray-client-server-port="$CLIENT_PORT")
  else
    wait_for_port "$host" "$port" || return
    address=$(ip -oneline route get "$host" | sed -n 's/.* src \([^ ]*\).*/\1/p')
    options+=(--address="$RAY_ADDRESS")
  fi
  # Without it, Gloo takes the address of the host's name, which may be 127.0.1.1.
  interface=$(ip -oneline address show to "$address" | awk '{ print $2; exit }')
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
  exec 3<&0
  keep_ray "$folder/start.log" --node-ip-address="$address" "${options[@]}"
  for _ in 1 2 3 4 5; do # its last processes may still write there
    rm -rf "$folder" 2>/dev/null && return
    sleep 1
  done
}

# Run Ray, and again where it has ended by itself: at a start on a busy node it gives up after 30 s.
keep_ray() {
  local log=$1 over='' ray reader
  trap 'over=yes' TERM # scancel sends it to every process, so to Ray as well
  while [ ! "$over" ]; do
    ray start "${@:2}" >"$log" 2>&1 </dev/null &
    ray=$!
    { read -r -u 3 || kill "$ray"; } &
    reader=$!
    while kill -0 "$ray" 2>/dev/null; do
      wait "$ray" || true
    done
    if [ "$over" ] || ! kill "$reader" 2>/dev/null; then # standard input has ended, and Ray with it
      return
    fi
    say "Ray has ended on $SLURMD_NODENAME and is started again: $(tail -n 1 "$log")"
    sleep 2
  done
}

wait_for_port() {
  local end=$((SECONDS + JOIN_SECONDS))
  until (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; do
    if ((SECONDS > end)); then
      say "nothing listens at $1:$2 after $JOIN_SECONDS s"
      return 1
    fi
    sleep 0.5
  done
}

all_nodes_joined() {
  wait_for_port "${RAY_ADDRESS%:*}" "${RAY_ADDRESS##*:}"
  exec python -c '
import os, sys, time, ray
wanted, seconds = int(os.environ["SLURM_JOB_NUM_NODES"]), int(os.environ["JOIN_SECONDS"])
joined, end = 0, time.monotonic() + seconds
while joined < wanted:
    if time.monotonic() > end:
        sys.exit(f"slurm.sh: {joined} of {wanted} nodes have joined Ray after {seconds} s")
    time.sleep(0.5)
    try:
        ray.is_initialized() or ray.init(logging_level="ERROR", log_to_driver=False)
        joined = len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})
    except (ConnectionError, ray.exceptions.RayError):
        ray.shutdown()'
}

free_ports() {
  python -c '
import socket
servers = [socket.create_server(("", 0)) for _ in range(3)]
print(*(server.getsockname()[1] for server in servers))'
}

start_ray() {
  local host=127.0.0.1 port pipe
  # What another node takes for the address of this one; here its name may stand for the loopback.
  if ((SLURM_JOB_NUM_NODES > 1)); then
    host=$("${STEP[@]}" --nodes=1 --ntasks=1 --relative=1 printenv SLURM_LAUNCH_NODE_IPADDR)
  fi
  read -r port DASHBOARD_PORT CLIENT_PORT < <(free_ports)
  export RAY_ADDRESS=$host:$port DASHBOARD_PORT CLIENT_PORT RAY_FOLDER JOIN_SECONDS
  export -f say wait_for_port keep_ray ray_node
  pipe=$(mktemp -u)
  mkfifo -m 600 "$pipe"
  "${STEP[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=1 \
    bash -c ray_node <"$pipe" &
  ray_step=$!
  exec 9>"$pipe" # Ray runs on all nodes until this is closed, or this script killed
  rm "$pipe"
}

stop_ray() {
  trap '' TERM
  exec 9>&-
  local second
  for ((second = 0; second < STOP_SECONDS; second++)); do
    kill -0 "$ray_step" 2>/dev/null || return 0
    sleep 1
  done
  say "Ray has not ended within $STOP_SECONDS s; Slurm kills it with the job"
}

# Run a command, pass SIGTERM on to it, and return its exit status.
run() {
  "$@" 9>&- &
  command=$!
  trap 'kill "$command" 2>/dev/null || true' TERM
  while kill -0 "$command" 2>/dev/null; do
    wait -n "$command" "$ray_step" || true # also ends with a signal
    if ! kill -0 "$ray_step" 2>/dev/null; then
      say "Ray has ended, and with it: $1"
      kill -KILL "$command" 2>/dev/null || true
      break
    fi
  done
  wait "$command" 2>/dev/null
}

if ((!$#)); then
  say "give the command that follows denoise, such as: sbatch --nodes 3 slurm.sh train method=n2n"
  exit 2
fi
command -v denoise >/dev/null || PATH=$PWD/.venv/bin:$PATH
if ! command -v denoise >/dev/null; then
  say "denoise is not installed: activate its environment before sbatch, or submit in the folder that has it as .venv"
  exit 1
fi
export RAY_AUTH_MODE=token RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 MALLOC_ARENA_MAX=1 RAY_worker_niceness=0
python -c 'from pipelines.cluster.auth import create_token; create_token()'

RAY_FOLDER=/tmp/denoise-ray-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0} # short, for Ray's sockets; and a node's number
start_ray
trap stop_ray EXIT
run all_nodes_joined
say "Ray at $RAY_ADDRESS, on $SLURM_JOB_NUM_NODES nodes: $SLURM_JOB_NODELIST"
run denoise "$@"
