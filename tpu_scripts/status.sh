#!/usr/bin/env bash
# The VM's state, each worker's state and last lines of log, and how far the run is.
set -euo pipefail
USAGE="status.sh NAME [--zone ZONE] [--project PROJECT] [--state DIR] [--dry-run]"
# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

while (($#)); do
  if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
  common_option "$@" && shift "$CONSUMED"
done
no_more_words 1
find_vm
vm_state || exit 1
if ((!DRY_RUN)); then echo "$NAME: $VM_STATE"; fi
if [[ $VM_STATE != READY ]]; then exit; fi
on_workers "bash $WORKER status"
on_workers "bash $WORKER progress" 0
