# shellcheck shell=bash disable=SC2034
# Shared by the scripts of this folder: arguments, what is remembered between them, and gcloud. Sourced after USAGE is set.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "tpu_scripts need bash 4.4 or newer, and this is $BASH_VERSION. On macOS: brew install bash" >&2
  exit 2
fi

readonly AGAIN=75 # EX_TEMPFAIL: the same command later may do it, as in the exit codes of isrdpo
readonly WORKER=isrdpo_jax/tpu_scripts/worker.sh # on the VM, from the home folder

NAME='' ZONE='' PROJECT='' DRY_RUN=0 POLL=30
STATE=${XDG_CACHE_HOME:-$HOME/.cache}/isrdpo/tpu
POSITIONAL=() # words that are no options
CONSUMED=0    # words that common_option has read
WORDS=()      # what recall has found
WHERE=()      # --zone and --project for gcloud
VM_STATE=''   # what vm_state has found

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

usage_error() {
  printf '%s: %s\nusage: %s\n' "${0##*/}" "$1" "$USAGE" >&2
  exit 2
}

need_value() { # OPTION [VALUE …]
  if [[ $# -lt 2 || $2 == --* ]]; then usage_error "$1 needs a value"; fi
}

need_number() { # OPTION VALUE
  if [[ ! $2 =~ ^[0-9]+(\.[0-9]+)?$ ]]; then usage_error "$1 needs a number of seconds, got '$2'"; fi
}

# Reads an option that every script has, or a positional word; the caller shifts by CONSUMED.
common_option() {
  CONSUMED=2
  case $1 in
    --zone) need_value "$@" && ZONE=$2 ;;
    --project) need_value "$@" && PROJECT=$2 ;;
    --state) need_value "$@" && STATE=$2 ;;
    --poll) need_value "$@" && need_number "$1" "$2" && POLL=$2 ;;
    --dry-run) DRY_RUN=1 CONSUMED=1 ;;
    -h | --help) echo "usage: $USAGE" && exit 0 ;;
    -*) usage_error "unknown option $1" ;;
    *) POSITIONAL+=("$1") CONSUMED=1 ;;
  esac
}

no_more_words() { # ALLOWED
  if ((${#POSITIONAL[@]} > $1)); then usage_error "'${POSITIONAL[$1]}' is one word too many"; fi
}

# The VM that is meant: zone and project as given, else as create.sh remembers them.
find_vm() {
  NAME=${POSITIONAL[0]-}
  if [[ -z $NAME ]]; then usage_error "name the VM"; fi
  if [[ ! $NAME =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]]; then
    usage_error "'$NAME' is not a name for a VM: lower-case letters, digits and hyphens, a letter first, at most 63"
  fi
  if recall vm; then ZONE=${ZONE:-${WORDS[0]}} PROJECT=${PROJECT:-${WORDS[1]}}; fi
  if [[ -z $ZONE ]]; then usage_error "--zone is needed ($NAME was not made by create.sh on this machine)"; fi
  if [[ ! $ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]]; then usage_error "'$ZONE' is not a zone, such as us-central1-a"; fi
  WHERE=(--zone="$ZONE")
  if [[ $PROJECT ]]; then WHERE+=(--project="$PROJECT"); fi
  if ((!DRY_RUN)) && ! command -v gcloud >/dev/null; then
    usage_error "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
  fi
}

# remember KEY WORD …: keeps the words of a call for the scripts that follow. Not with --dry-run.
remember() {
  if ((DRY_RUN)); then return; fi
  mkdir -p "$STATE/$NAME"
  printf '%s\0' "${@:2}" >"$STATE/$NAME/$1"
}

# recall KEY: sets WORDS; fails where nothing is remembered.
recall() {
  WORDS=()
  if [[ ! -f $STATE/$NAME/$1 ]]; then return 1; fi
  mapfile -d '' -t WORDS <"$STATE/$NAME/$1"
}

forget() {
  if ((!DRY_RUN)); then rm -rf -- "${STATE:?}/${NAME:?}"; fi
}

quoted() { # WORD …: one line that a shell reads as exactly these words
  local word line=()
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then line+=("$word"); else line+=("${word@Q}"); fi
  done
  echo "${line[*]}"
}

# Runs a command, or prints it (--dry-run).
act() {
  if ((DRY_RUN)); then quoted "$@"; else "$@"; fi
}

# describe KIND FIELD: sets REPLY to a field of the VM (tpu-vm) or of its request (queued-resources), or to MISSING.
# Fails where gcloud cannot tell.
describe() {
  local command=(gcloud compute tpus "$1" describe "$NAME" "${WHERE[@]}" --format="value($2)") errors
  REPLY=''
  if ((DRY_RUN)); then
    quoted "${command[@]}"
    return
  fi
  errors=$(mktemp)
  if REPLY=$("${command[@]}" 2>"$errors" </dev/null); then
    rm -f "$errors"
  elif grep -Eq 'NOT_FOUND|was not found' "$errors"; then
    rm -f "$errors"
    REPLY=MISSING
  else
    cat "$errors" >&2
    rm -f "$errors"
    return 1
  fi
}

# Sets VM_STATE: the VM's state, before there is a VM that of its request in the queue, else MISSING.
vm_state() {
  describe tpu-vm state || return 1
  if ((DRY_RUN)); then REPLY=READY; fi
  if [[ $REPLY == MISSING ]]; then describe queued-resources state.state || return 1; fi
  VM_STATE=$REPLY
}

# Whether a VM in VM_STATE will never be ready again, so that another one must be made.
is_gone() { [[ $VM_STATE =~ ^(MISSING|PREEMPTED|TERMINATED|UNKNOWN|SUSPENDED|FAILED)$ ]]; }

# Whether only its user can bring it back.
is_stopped() { [[ $VM_STATE =~ ^(STOPPED|HIDDEN)$ ]]; }

wait_until_ready() {
  local before=''
  while true; do
    vm_state || exit 1
    if [[ $VM_STATE == READY ]]; then return; fi
    if is_gone; then say "$NAME is $VM_STATE. Create it again: create.sh, or watch.sh" && exit "$AGAIN"; fi
    if is_stopped; then say "$NAME is $VM_STATE. Start it: gcloud compute tpus tpu-vm start $NAME ${WHERE[*]}" && exit 2; fi
    if [[ $VM_STATE != "$before" ]]; then say "$NAME is $VM_STATE; waiting until it is READY"; fi
    before=$VM_STATE
    sleep "$POLL"
  done
}

# on_workers COMMAND [WORKERS]: on all workers at once (or the given ones), from the home folder.
# gcloud's exit code is that of the first worker that fails; 255 where ssh itself did.
on_workers() {
  act gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="${2:-all}" --command="$1" </dev/null
}

# Deletes the request in the queue (with its VM), and a VM that has none.
delete_vm() {
  describe queued-resources state.state || return 1
  if [[ $REPLY != MISSING ]]; then
    act gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet || return 1
  fi
  describe tpu-vm state || return 1
  if [[ $REPLY != MISSING ]]; then
    act gcloud compute tpus tpu-vm delete "$NAME" "${WHERE[@]}" --quiet || return 1
  fi
}
