#!/bin/bash
# GKD-CLS on SST-2: students on all nodes but the last, which teaches.
#   sbatch slurm/gkd_sst2.sh [key=value …]                 from the checkout's root, after launcher/prepare.py
#   python launcher/submit.py --config configs/gkd_sst2.yaml --script slurm/gkd_sst2.sh     checks, shows, submits
#SBATCH --job-name=gkd_sst2
##SBATCH --account=NAME
##SBATCH --partition=NAME
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log

config=${CONFIG:-configs/gkd_sst2.yaml}
run_dir=${RUN_DIR:-runs/gkd_sst2}
settings=(cluster.teachers=4 cluster.placement=nodes)
most_restarts=50
setup() { . "${VENV:-.venv}/bin/activate"; } # or: module load …
inside=()                                    # or: inside=(apptainer exec --nv image.sif)

# ---- from here on all scripts of this folder are the same ----
cd "$SLURM_SUBMIT_DIR" && setup || exit
[ -z "${SWEEP:-}" ] || run_dir=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$SWEEP") # a trial of launcher/sweep.py
trap : USR1 # it is meant for the ranks, which checkpoint and exit with 75; this script waits for them
restarts=${SLURM_RESTART_COUNT:-0}

# Code and configuration as they were when the job was submitted by launcher/submit.py, or else first started.
job=$run_dir/jobs/${FROZEN:-$SLURM_JOB_ID}
if [ ! -d "$job" ]; then
  PYTHONPATH=$PWD "${inside[@]}" python launcher/submit.py --freeze "$job" --config "$config" run_dir="$run_dir" \
    "${settings[@]}" "$@" || exit
fi

# The first node as Slurm itself reaches it, and a port of this job's own, below those that kernels give away (from
# 32768 on). A start after a requeue takes another port: the one before may still be held by what is ending.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol --oneliner show node "$first" | sed 's/.* NodeAddr=\([^ ]*\).*/\1/')
MASTER_PORT=$((15000 + (SLURM_JOB_ID + 4001 * restarts) % 17000))
PYTHONPATH=$(realpath "$job")
OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes sbatch's (Slurm 22.05)
# The last task of an array has the whole array's number as its own.
id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
id=${id:-$SLURM_JOB_ID}
# When the time is up, before which the ranks save even if no signal comes (Slurm itself says so from 23.02 on).
end=$(SLURM_TIME_FORMAT=standard squeue --noheader --jobs="$id" --format=%e | head -n 1)
SLURM_JOB_END_TIME=${end:+$(date -d "$end" +%s 2>/dev/null)}
export MASTER_ADDR MASTER_PORT PYTHONPATH OMP_NUM_THREADS SRUN_CPUS_PER_TASK SLURM_JOB_END_TIME

# Signals wait until Python can take them, where env knows how (coreutils 8.31). No rank is killed because another
# one ended: the others save first; nor, in a job submitted with --no-kill, because its node is lost. Slurm's own %t
# counts anew in each part of a heterogeneous job.
hold="env --block-signal=TERM,USR1"
$hold true 2>/dev/null || hold=
mkdir -p "$run_dir/logs" && touch "$job/started"
srun ${SLURM_HET_SIZE:+--het-group=0-$((SLURM_HET_SIZE - 1))} \
  --no-kill --kill-on-bad-exit=0 --wait=0 \
  $hold bash -c 'exec "$@" >>"$0-$(printf %05d "$SLURM_PROCID").out" 2>&1' "$run_dir/logs/rank" \
  "${inside[@]}" python "$job/launcher/train.py" --config "$job/config.yaml"
code=$?

# srun's code is the highest of all ranks. 75: some stopped in good order, because others failed it may be. Above 128: a
# rank was killed, and the others have said what became of the run, or nobody was left to. A teacher may be missed.
if [ "$code" = 75 ] || [ "$code" -gt 128 ]; then
  said=$([ "$run_dir/state.json" -nt "$job/started" ] && grep -so '"state": "[a-z]*"' "$run_dir/state.json")
  case $said in *done*) code=0 ;; *failed*) code=1 ;; esac
fi
# A script on a node that Slurm has given up does not requeue the job that goes on elsewhere.
goes_on='"resumable": true\|"state": "running"'
if [ "$code" = 75 ] || { [ "$code" -gt 128 ] && grep -qs "$goes_on" "$run_dir/state.json"; }; then
  scontrol --oneliner show job "$id" | head -n 1 | grep -q " Restarts=$restarts " &&
    [ "$restarts" -lt "$most_restarts" ] && scontrol requeue "$id"
fi
exit "$code"
