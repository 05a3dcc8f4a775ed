#!/usr/bin/env bash
# What happens on one worker; the other scripts call it through ssh. In the home folder: the repository in isrdpo_jax/,
# and in isrdpo_run/ what belongs to the run's process: its log, exit code and lock.
#
#   worker.sh setup [SOURCE]    install; mount SOURCE at shared/
#   worker.sh start [--logs URL] [--runs URL] [--data URL] [--sync-every SECONDS] CONFIG [KEY=VALUE …]
#   worker.sh stop | state | status | progress
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly JOB=$HOME/isrdpo_run
mkdir -p "$JOB"

fail() { # CODE MESSAGE
  echo "$HOSTNAME: $2" >&2
  exit "$1"
}

# A process holds the lock as long as the run lives; the kernel lets go of it when that dies, however it dies.
is_running() { ! (flock -n 9) 9>>"$JOB/lock"; }

# ---- set-up ---------------------------------------------------------------------------------------------------------

apt_install() { # after a boot Ubuntu's own updates hold apt's lock for minutes
  sudo apt-get -o DPkg::Lock::Timeout=600 update -q >&2
  sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -qy "$@" >&2
}

find_python() { # TPU runtimes come with Python 3.10, which JAX has left behind
  local python
  for python in python3.11 python3.12; do
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then command -v "$python" && return; fi
  done
  python3 -m pip install --quiet --user uv >&2
  "$HOME/.local/bin/uv" python install --quiet 3.12 >&2
  "$HOME/.local/bin/uv" python find 3.12
}

mount_shared() { # SOURCE
  mkdir -p shared
  if mountpoint -q shared; then return; fi
  if [[ $1 == gs://* ]]; then
    local bucket=${1#gs://} folder=''
    if [[ $bucket == */* ]]; then folder=${bucket#*/} bucket=${bucket%%/*}; fi
    if ! command -v gcsfuse >/dev/null; then
      local key=/usr/share/keyrings/cloud.google.asc packages
      packages=$(lsb_release -cs)
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
      echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$packages main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      apt_install gcsfuse
    fi
    # No metadata cache: every worker must see at once what another has written.
    gcsfuse --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 ${folder:+--only-dir="$folder"} "$bucket" shared
  else
    if ! command -v mount.nfs >/dev/null; then apt_install nfs-common; fi
    sudo mount -t nfs -o hard "$1" shared
    sudo install -d -o "$(id -u)" shared/runs
  fi
}

setup() { # [SOURCE]
  if is_running; then fail 2 "a run is on this VM; stop it before a set-up: run.sh NAME --stop"; fi
  if ! command -v make >/dev/null; then apt_install make; fi
  make setup-tpu PYTHON="$(find_python)"
  if [[ ${1-} ]]; then
    echo "$1" >"$JOB/mount"
    mount_shared "$1"
  fi
  echo "$HOSTNAME: set up"
}

# ---- start ----------------------------------------------------------------------------------------------------------

LOGS='' RUNS='' DATA='' SYNC_EVERY=600 PROCESSES=() CONFIG='' OVERRIDES=()
read_words() {
  while [[ ${1-} == --* ]]; do
    case $1 in
      --logs) LOGS=$2 ;;
      --runs) RUNS=$2 ;;
      --data) DATA=$2 ;;
      --sync-every) SYNC_EVERY=$2 ;;
      --processes) PROCESSES=(--processes "$2") ;;
      *) fail 2 "unknown option $1" ;;
    esac
    shift 2
  done
  CONFIG=$1 OVERRIDES=("${@:2}")
}

# The folder of the run, as the product reads its config; a config that cannot be used ends here, with 2.
run_folder() {
  local config
  config=$(.venv/bin/isrdpo config show "$CONFIG" "${OVERRIDES[@]}" --json) || return
  .venv/bin/python -c '
import json, sys
values = json.loads(sys.argv[1])["values"]
print(values["run.dir"]["value"] + "/" + values["run.name"]["value"])' "$config"
}

start() {
  read_words "$@"
  if [[ ! -x .venv/bin/isrdpo ]]; then fail 2 "isrdpo_jax is not installed here: setup.sh NAME"; fi
  exec 9>>"$JOB/lock"
  flock -n 9 || fail 2 "a run is on this VM already. Look: status.sh NAME; end it: run.sh NAME --stop"
  if [[ -f $JOB/mount ]]; then mount_shared "$(<"$JOB/mount")" 9>&-; fi # a VM that was rebooted has lost it
  run_folder >"$JOB/folder"
  rm -f "$JOB/exit"
  # A session of its own outlives ssh, and is one process group for `stop`. It inherits the lock (9).
  setsid bash tpu_scripts/worker.sh supervise "$@" </dev/null >>"$JOB/log" 2>&1 &
  echo $! >"$JOB/pid"
  echo "$HOSTNAME: started, log in $JOB/log"
}

# ---- while it runs --------------------------------------------------------------------------------------------------

# Copies the run to the bucket such that a manifest there never lacks a file that it names, at any moment: the VM may
# be taken away in the middle. A hard-linked copy stands still meanwhile, since files of a run are made by renames.
sync_run() { # FOLDER URL
  local stage manifest
  if [[ ! -d $1 ]]; then return 0; fi
  stage=${1%/*}/.${1##*/}.sync
  rm -rf "$stage" && mkdir -p "$stage"
  copy() { (cd "$1" && find . -type f "${@:3}" -print0 | xargs -0 -r cp -l --parents -t "$2"); }
  stage=$(cd "$stage" && pwd)
  # Manifests first: what they name was there before them. What vanishes meanwhile is a temporary, or just removed.
  copy "$1" "$stage" -name '*.manifest.json' 2>/dev/null || true
  copy "$1" "$stage" ! -name '*.manifest.json' ! -name '.*.tmp' ! -path '*.orbax-checkpoint-tmp*' ! -path ./lock 2>/dev/null || true
  while IFS= read -r -d '' manifest; do # removed meanwhile (always before its files), or replaced: not in this copy
    if [[ ! $stage/$manifest -ef $1/$manifest ]]; then rm "$stage/$manifest"; fi
  done < <(cd "$stage" && find . -name '*.manifest.json' -print0)
  local rsync=(gcloud storage rsync "$stage" "$2" --recursive) delete=--delete-unmatched-destination-objects
  "${rsync[@]}" --exclude='.*\.manifest\.json$' &&
    "${rsync[@]}" --exclude='(?!.*\.manifest\.json$)' "$delete" &&
    "${rsync[@]}" --exclude='.*\.manifest\.json$' "$delete" || return 1
  rm -rf "$stage"
}

sync_all() {
  local failed=0 folder
  folder=$(<"$JOB/folder")
  if [[ $RUNS ]]; then sync_run "$folder" "$RUNS/${folder##*/}" || failed=1; fi
  if [[ $LOGS ]]; then gcloud storage cp "$JOB/log" "$LOGS/$HOSTNAME.log" || failed=1; fi
  return "$failed"
}

# Data to the disk of this worker, and the run as another VM left it in the bucket, unless it is here.
fetch() {
  local folder listing
  folder=$(<"$JOB/folder")
  if [[ $DATA ]]; then
    mkdir -p data && gcloud storage rsync "$DATA" data --recursive || return 1
  fi
  if [[ -z $RUNS || -d $folder ]]; then return 0; fi
  if listing=$(gcloud storage ls "$RUNS/${folder##*/}/" 2>&1); then
    rm -rf "$folder.fetching" && mkdir -p "$folder.fetching"
    gcloud storage rsync "$RUNS/${folder##*/}" "$folder.fetching" --recursive && mv "$folder.fetching" "$folder"
  elif [[ $listing != *"matched no objects"* ]]; then # not allowed, or no network: a new run would overwrite the old
    echo "$listing"
    return 1
  fi
}

supervise() {
  read_words "$@"
  local code=0 child next=$SYNC_EVERY stopped=0
  trap stopped=1 TERM # the run gets the signal too, saves, and ends with 75; what it saved is still to be copied
  echo "==== $(date -u +%FT%TZ) $HOSTNAME: isrdpo run $CONFIG ${OVERRIDES[*]}"
  if fetch; then
    # With the platform named, a TPU that cannot be opened is an error and not a slow run on the CPU.
    JAX_PLATFORMS=${JAX_PLATFORMS-tpu,cpu} .venv/bin/isrdpo run "$CONFIG" "${OVERRIDES[@]}" "${PROCESSES[@]}" &
    child=$!
    SECONDS=0
    while kill -0 "$child" 2>/dev/null; do
      sleep 0.5 || true
      if ((SECONDS >= next)); then
        sync_all || echo "worker.sh: the copy to the bucket failed; tried again in $SYNC_EVERY s"
        next=$((SECONDS + SYNC_EVERY))
      fi
    done
    wait "$child" || code=$?
    echo "==== $(date -u +%FT%TZ) $HOSTNAME: isrdpo ended with $code"
  else
    echo "worker.sh: data or run could not be fetched; nothing was started"
    if ((stopped)); then code=75; else code=1; fi
  fi
  if ! sync_all; then
    echo "worker.sh: the last copy to the bucket failed" # then the run is not done: another call copies again
    if ((code == 0)); then code=1; fi
  fi
  echo "$code" >"$JOB/exit.new" && mv "$JOB/exit.new" "$JOB/exit"
}

# ---- from outside ---------------------------------------------------------------------------------------------------

stop() {
  local group signal
  if ! is_running; then echo "$HOSTNAME: no run" && return; fi
  group=$(<"$JOB/pid")
  for signal in TERM KILL; do
    kill "-$signal" -- "-$group" 2>/dev/null || true
    for _ in {1..240}; do
      if ! is_running; then echo "$HOSTNAME: stopped by SIG$signal" && return; fi
      sleep 0.5
    done
  done
  fail 1 "the run does not end, even by SIGKILL; delete the VM"
}

state() {
  if is_running; then
    echo "$HOSTNAME running"
  elif [[ -f $JOB/exit ]]; then
    echo "$HOSTNAME exited $(<"$JOB/exit")"
  elif [[ -f $JOB/pid ]]; then # killed together with its supervisor: out of memory, a reboot
    echo "$HOSTNAME lost"
  else
    echo "$HOSTNAME idle"
  fi
}

status() {
  echo "== $(state)"
  if [[ -f $JOB/log ]]; then tail -n 5 "$JOB/log"; fi
}

progress() {
  if [[ -f $JOB/folder && -d $(<"$JOB/folder") ]]; then JAX_PLATFORMS=cpu .venv/bin/isrdpo status "$(<"$JOB/folder")"; fi
}

case ${1-} in
  setup | start | supervise | stop | state | status | progress) "$@" ;;
  *) fail 2 "usage: worker.sh setup | start | stop | state | status | progress" ;;
esac
