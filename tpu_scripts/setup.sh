#!/usr/bin/env bash
# Waits until the VM is ready, copies a commit to all workers and installs it there. Again = updates.
set -euo pipefail
USAGE="setup.sh NAME [--mount SOURCE] [--commit COMMIT] [--zone ZONE] [--project PROJECT] [--state DIR] [--poll SECONDS] [--dry-run]
  --mount    a file system that all workers share, at isrdpo_jax/shared on each: SERVER:/SHARE (NFS, such as Filestore)
             or gs://BUCKET[/FOLDER] (gcsfuse). VMs of several workers need one: the run is written there
  --commit   what to copy (HEAD); watch.sh copies the same commit to the VMs that it makes"
# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CALL=("$@")
MOUNT='' COMMIT=HEAD
while (($#)); do
  if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
  case $1 in
    --mount) need_value "$@" && MOUNT=$2 && shift 2 ;;
    --commit) need_value "$@" && COMMIT=$2 && shift 2 ;;
    *) common_option "$@" && shift "$CONSUMED" ;;
  esac
done
no_more_words 1
find_vm
if [[ $MOUNT && ! $MOUNT =~ ^gs://[a-z0-9][a-z0-9._-]+(/.*)?$ && ! $MOUNT =~ ^[A-Za-z0-9.-]+:/.+$ ]]; then
  usage_error "--mount needs gs://BUCKET[/FOLDER] or SERVER:/SHARE, got '$MOUNT'"
fi
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COMMIT=$(git -C "$repository" rev-parse --verify --quiet "$COMMIT^{commit}") ||
  usage_error "there is no commit $COMMIT in $repository; what is copied is a commit"
if [[ $(git -C "$repository" status --porcelain) ]]; then say "uncommitted changes are not copied, only ${COMMIT::10}"; fi

remember setup "${CALL[@]}" --commit "$COMMIT"
wait_until_ready
archive=${TMPDIR:-/tmp}/isrdpo_jax-$NAME.tar.gz
if ((!DRY_RUN)); then trap 'rm -f "$archive"' EXIT; fi
act git -C "$repository" archive --format=tar.gz --output="$archive" "$COMMIT"
act gcloud compute tpus tpu-vm scp "$archive" "$NAME:isrdpo_jax.tar.gz" "${WHERE[@]}" --worker=all </dev/null
unpack="mkdir -p isrdpo_jax && tar -xzf isrdpo_jax.tar.gz -C isrdpo_jax"
code=0
on_workers "$unpack && $(quoted bash "$WORKER" setup ${MOUNT:+"$MOUNT"})" || code=$?
if ((code)); then
  say "not all workers are set up; the message above says which. The same command again goes on"
  exit "$code"
fi
if ((!DRY_RUN)); then say "$NAME is set up. Next: run.sh $NAME CONFIG"; fi
