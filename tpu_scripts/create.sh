#!/usr/bin/env bash
# Asks for a TPU VM: through the queue (the request waits until there is room), or now or never.
set -euo pipefail
USAGE="create.sh NAME --zone ZONE --type TYPE [--spot] [--now] [--runtime VERSION] [--project PROJECT] [--state DIR] [--dry-run]
  TYPE       Cloud's accelerator type: v5litepod-16 (v5e:4x4), v5p-16 (2x2x2, 8 chips), v6e-256 (16x16) …
  --spot     cheaper, and preempted at any time: see watch.sh
  --now      no queue: a VM now, or exit code 75 where there is no room"
# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CALL=("$@")
TYPE='' RUNTIME='' SPOT=0 NOW=0
while (($#)); do
  if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
  case $1 in
    --type) need_value "$@" && TYPE=$2 && shift 2 ;;
    --runtime) need_value "$@" && RUNTIME=$2 && shift 2 ;;
    --spot) SPOT=1 && shift ;;
    --now) NOW=1 && shift ;;
    *) common_option "$@" && shift "$CONSUMED" ;;
  esac
done
no_more_words 1
find_vm

if [[ -z $TYPE ]]; then usage_error "--type is needed, such as v5litepod-16"; fi
if [[ $TYPE == v5e-* ]]; then usage_error "Cloud calls v5e v5litepod: --type v5litepod-${TYPE#v5e-}"; fi
if [[ ! $TYPE =~ ^v[0-9]+[a-z]*-[0-9]+$ ]]; then usage_error "'$TYPE' is not an accelerator type, such as v5litepod-16"; fi

# Runtime versions for JAX, from https://cloud.google.com/tpu/docs/runtimes
if [[ -z $RUNTIME ]]; then
  case $TYPE in
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    v[234]-*) RUNTIME=tpu-ubuntu2204-base ;;
    *) usage_error "the runtime of $TYPE is not known here; name it with --runtime" ;;
  esac
fi

if ((NOW)); then
  command=(gcloud compute tpus tpu-vm create "$NAME" "${WHERE[@]}" --accelerator-type="$TYPE" --version="$RUNTIME")
else
  command=(gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${WHERE[@]}"
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME")
fi
if ((SPOT)); then command+=(--spot); fi

remember vm "$ZONE" "$PROJECT"
remember create "${CALL[@]}"
if ((DRY_RUN)); then
  act "${command[@]}"
  exit
fi
output=$(mktemp)
trap 'rm -f "$output"' EXIT
if "${command[@]}" 2>&1 </dev/null | tee "$output" >&2; then
  say "asked for $NAME ($TYPE, $RUNTIME). Next: setup.sh $NAME (it waits until the VM is ready)"
  exit
fi
why() { grep -Eqi "$1" "$output"; }
if why 'quota'; then
  say "the project's quota for $TYPE in $ZONE is used up or 0. Requests that failed or are suspended count too: delete
  them (gcloud compute tpus queued-resources list --zone=$ZONE), or ask for more: https://cloud.google.com/tpu/docs/quota"
  exit 2
elif why 'no more capacity|insufficient .*capacity|resource_exhausted|stockout'; then
  say "there is no room for $TYPE in $ZONE now. Try later, elsewhere, or without --now (the queue)"
  exit "$AGAIN"
elif why 'already_exists|already exists'; then
  say "$NAME exists. Use it, or delete it first: delete.sh $NAME"
  exit 2
elif why 'permission_denied|unauthenticated|do not currently have an active account|reauthentication'; then
  say "not permitted. Log in (gcloud auth login), choose the project (--project), enable tpu.googleapis.com, ask for roles/tpu.admin"
  exit 2
elif why 'invalid_argument|not_found|invalid choice'; then
  say "refused: is there $TYPE in $ZONE, with runtime $RUNTIME? gcloud compute tpus accelerator-types list --zone=$ZONE"
  exit 2
fi
exit 1
