#!/usr/bin/env bash
# Deletes the VM and its request in the queue. What is only on the VM's disks is lost.
set -euo pipefail
USAGE="delete.sh NAME [--yes] [--zone ZONE] [--project PROJECT] [--state DIR] [--dry-run]"
# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

YES=0
while (($#)); do
  if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
  case $1 in
    --yes) YES=1 && shift ;;
    *) common_option "$@" && shift "$CONSUMED" ;;
  esac
done
no_more_words 1
find_vm
if ((!YES && !DRY_RUN)); then
  answer=''
  read -rp "Delete $NAME in $ZONE, and what is only on its disks? [y/N] " answer || true
  if [[ ! $answer =~ ^[yY] ]]; then say "nothing is deleted (--yes answers beforehand)" && exit 2; fi
fi
forget # first, so that a watch.sh beside does not make it again
delete_vm || { say "$NAME may still be there, and cost: try again with --zone $ZONE" && exit 1; }
if ((!DRY_RUN)); then say "$NAME is gone"; fi
