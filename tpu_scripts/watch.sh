#!/usr/bin/env bash
# Brings a run to its end: makes the VM again when it is preempted, sets it up, and runs on. Ctrl-C ends the watch only.
# Needs the calls that create.sh, setup.sh and run.sh remember; make them once, in this order, then watch.
set -euo pipefail
USAGE="watch.sh NAME [--poll SECONDS] [--zone ZONE] [--project PROJECT] [--state DIR] [--dry-run]
  Ends with 0 when the run is done, 2 when you are needed (its message says what for), 1 after three faults in a row,
  75 when the VM was deleted by delete.sh."
# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly MOST_FAULTS=3      # of the run, of a set-up, of a request, in a row
readonly A_WHILE=1800       # seconds after which a fault is no longer in a row with the one before
readonly MOST_UNREACHED=20  # polls in a row without an answer

while (($#)); do
  if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
  common_option "$@" && shift "$CONSUMED"
done
no_more_words 1
find_vm
recall create || usage_error "create.sh has not been called for $NAME on this machine"
CREATE=("${WORDS[@]}")
recall run || usage_error "run.sh has not been called for $NAME on this machine"
RUN=("${WORDS[@]}")
if recall setup; then SETUP=("${WORDS[@]}"); else SETUP=("$NAME"); fi
state_of_run="if [ -f $WORKER ]; then bash $WORKER state; else echo \$HOSTNAME idle; fi"

faults=0 unreached=0
SECONDS=0

end() { # CODE MESSAGE
  say "$2"
  exit "$1"
}

fault() { # WHAT: counts one; a run that lasted a while starts the count again
  if ((SECONDS > A_WHILE)); then faults=0; fi
  SECONDS=0 faults=$((faults + 1))
  say "$1 (fault $faults of $MOST_FAULTS in a row)"
  if ((faults >= MOST_FAULTS)); then
    on_workers "bash $WORKER status" || true
    end 1 "gave up. The VM is still there, and costs: status.sh $NAME, delete.sh $NAME"
  fi
}

silent() { # whether gcloud or the workers have answered nothing for too long
  unreached=$((unreached + 1))
  if ((unreached >= MOST_UNREACHED)); then
    end 2 "no answer $unreached times in a row. Check: gcloud auth login; ssh-add ~/.ssh/google_compute_engine; status.sh $NAME"
  fi
}

make_again() {
  local code=0
  delete_vm || { silent && return; }
  "$here/create.sh" "${CREATE[@]}" || code=$?
  case $code in
    0) ;;
    "$AGAIN") ;; # no room now; the next poll finds no VM, and asks again
    2) end 2 "$NAME cannot be made again; see above" ;;
    *) fault "$NAME could not be made again" ;;
  esac
}

begin() { # SCRIPT WORD …: setup.sh or run.sh; fails where the run cannot begin yet
  local code=0
  "$here/$1" "${@:2}" || code=$?
  if ((code == 0)); then return; fi
  if ((code == 2)); then end 2 "$1 was refused; see above"; fi
  if vm_state && [[ $VM_STATE == READY ]]; then fault "$1 failed on a VM that is ready"; fi # else: preempted meanwhile
  return 1
}

look_at_run() {
  local report codes
  if ! report=$(on_workers "$state_of_run" 2>/dev/null); then
    silent
    return
  fi
  unreached=0
  codes=$(sed -n 's/^.* exited //p' <<<"$report" | sort -un)
  if grep -qx 2 <<<"$codes"; then
    on_workers "bash $WORKER status" || true
    end 2 "the run ended with 2: its configuration or data must be changed; see above"
  elif ! grep -Eq ' (exited [1-9][0-9]*|idle|lost)$' <<<"$report"; then # all running or done
    if ! grep -q ' running$' <<<"$report"; then end 0 "the run is done. The VM is still there, and costs: delete.sh $NAME"; fi
  else
    say "not running everywhere: ${report//$'\n'/, }"
    if grep -q ' lost$' <<<"$report"; then fault "the run was killed (memory, a reboot)"; fi
    if grep -Eqvx '0|75' <<<"${codes:-0}"; then fault "the run ended with ${codes//$'\n'/, }"; fi
    if grep -q ' running$' <<<"$report"; then on_workers "bash $WORKER stop" || true; fi
    if grep -q ' idle$' <<<"$report"; then begin setup.sh "${SETUP[@]}" || return 0; fi
    begin run.sh "${RUN[@]}" || return 0
  fi
}

if ((DRY_RUN)); then
  echo "# every $POLL seconds" && vm_state && on_workers "$state_of_run"
  echo "# when the VM is gone" && delete_vm && "$here/create.sh" "${CREATE[@]}" --dry-run
  echo "# when it is ready again, or the run has stopped" && "$here/setup.sh" "${SETUP[@]}" --dry-run
  "$here/run.sh" "${RUN[@]}" --dry-run
  exit
fi

before=''
while true; do
  if ! recall create; then end "$AGAIN" "$NAME was deleted by delete.sh"; fi
  if vm_state; then
    if [[ $VM_STATE != "$before" ]]; then say "$NAME is $VM_STATE"; fi
    before=$VM_STATE
    if is_stopped; then end 2 "start it (gcloud compute tpus tpu-vm start $NAME ${WHERE[*]}) and watch again"; fi
    if [[ $VM_STATE == FAILED ]]; then fault "the request failed: gcloud compute tpus queued-resources describe $NAME ${WHERE[*]}"; fi
    if is_gone; then make_again; elif [[ $VM_STATE == READY ]]; then look_at_run; fi
  else
    silent
  fi
  sleep "$POLL"
done
