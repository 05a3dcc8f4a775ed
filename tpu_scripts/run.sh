#!/usr/bin/env bash
# Starts `isrdpo run` on all workers. It goes on when ssh ends; the same call again resumes a run that has ended.
set -euo pipefail
USAGE="run.sh NAME [--bucket gs://BUCKET/FOLDER] [--data gs://BUCKET/FOLDER] [--sync-every SECONDS] CONFIG [KEY=VALUE …]
       run.sh NAME --stop
  --bucket      every worker's log is copied to logs/ in it; of a VM with one worker also the run, to runs/, and back
                where a new VM goes on with it
  --data        prepared data, copied to data/ on every worker first
  --sync-every  seconds between two copies to the bucket (600)
  --stop        asks the run to save and end (SIGTERM); killed where it has not after two minutes
  and  [--zone ZONE] [--project PROJECT] [--state DIR] [--dry-run]"
# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CALL=("$@")
BUCKET='' DATA='' SYNC_EVERY=600 STOP=0
while (($#)); do
  if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
  case $1 in
    --bucket) need_value "$@" && BUCKET=${2%/} && shift 2 ;;
    --data) need_value "$@" && DATA=${2%/} && shift 2 ;;
    --sync-every) need_value "$@" && need_number "$1" "$2" && SYNC_EVERY=${2%.*} && shift 2 ;;
    --stop) STOP=1 && shift ;;
    *) common_option "$@" && shift "$CONSUMED" ;;
  esac
done
find_vm
if ((STOP)); then
  no_more_words 1
  on_workers "bash $WORKER stop"
  exit
fi

CONFIG=${POSITIONAL[1]-}
OVERRIDES=("${POSITIONAL[@]:2}")
if [[ -z $CONFIG ]]; then usage_error "name a config, such as configs/shapes.yaml"; fi
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $CONFIG == /* || ! -f $repository/$CONFIG ]]; then
  usage_error "'$CONFIG' is not a file of the repository; name it from its root, such as configs/shapes.yaml"
fi
for override in "${OVERRIDES[@]}"; do
  if [[ ! $override =~ ^[A-Za-z_][A-Za-z0-9_.]*= ]]; then usage_error "'$override' is not KEY=VALUE, such as dpo.beta=0.2"; fi
done
for address in "$BUCKET" "$DATA"; do
  if [[ $address && ! $address =~ ^gs://[a-z0-9][a-z0-9._-]+(/.*)?$ ]]; then usage_error "'$address' is not gs://BUCKET/FOLDER"; fi
done

# Where the run is written: on the shared file system, on one the user named, or on the disk of the only worker.
describe tpu-vm 'networkEndpoints[].ipAddress'
if [[ $REPLY == MISSING ]]; then say "there is no VM $NAME. Create it: create.sh" && exit "$AGAIN"; fi
IFS='; ' read -ra addresses <<<"$REPLY"
shared=0 elsewhere=0
if recall setup && [[ " ${WORDS[*]}" == *" --mount"* ]]; then shared=1; fi
if [[ " ${OVERRIDES[*]-}" == *" run.dir=/"* ]]; then elsewhere=1; fi
if ((${#addresses[@]} > 1 && !shared && !elsewhere)); then
  usage_error "$NAME has ${#addresses[@]} workers, which write one run together: give them a shared file system
  (setup.sh $NAME --mount SERVER:/SHARE), or name one that all of them see (run.dir=/PATH)"
fi

start=(bash "$WORKER" start --sync-every "$SYNC_EVERY")
if [[ $BUCKET ]]; then start+=(--logs "$BUCKET/logs/$NAME"); fi
# What several workers share outlives them; what one worker has goes with it, on whichever disk.
if [[ $BUCKET ]] && ((!shared && (${#addresses[@]} <= 1 || !elsewhere))); then start+=(--runs "$BUCKET/runs"); fi
if [[ $DATA ]]; then start+=(--data "$DATA"); fi
if ((${#addresses[@]} > 1)); then start+=(--processes auto); fi # one run of all workers, as the TPU's metadata says
start+=("$CONFIG")
if ((shared)); then start+=(run.dir=shared/runs); fi
start+=("${OVERRIDES[@]}")

remember run "${CALL[@]}"
code=0
on_workers "$(quoted "${start[@]}")" || code=$?
if ((code == 255)); then say "a worker could not be reached, others may have started: run.sh $NAME --stop, then again"; fi
if ((code == 0 && !DRY_RUN)); then say "started. Look at it: status.sh $NAME. Bring it to its end through preemptions: watch.sh $NAME"; fi
exit "$code"
