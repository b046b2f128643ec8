#!/usr/bin/env bash
# One step on a GPU machine that is available for minutes, from the root of the tree: scripts/gpu.sh first|bench|study SECONDS
#   first  Does it run? The GPU tests, a training run of each kind, and the comparisons that must be equal bit for bit.
#   bench  What does it cost? The benchmarks, the most valuable first; run it again to continue.
#   study  Does it help? The paper's tables on the images in .gpu/tars; run it again to continue.
# Needs no package registry, .git or network: it uses the machine's Python (or PYTHON3=…) and the wheels in .gpu/lite.
# DEVICE=cpu rehearses it. The results are in $OUT/STEP.tgz (default of OUT: runs/gpu) within SECONDS, also after a failure.
set -u
cd "$(dirname "$0")/.." || exit
step=${1:-} seconds=${2:-}
case $step in first | bench | study) ;; *) step= ;; esac
if [ -z "$step" ] || ! [ "${seconds:-0}" -ge 60 ] 2>/dev/null; then
  echo "usage: scripts/gpu.sh first|bench|study SECONDS   (SECONDS at least 60)" >&2
  exit 2
fi
begun=$SECONDS
OUT=${OUT:-runs/gpu} PYTHON3=${PYTHON3:-python3} DEVICE=${DEVICE:-cuda}
work=$PWD/.gpu/work site=$PWD/.gpu/site
results=$work/$step
mkdir -p "$OUT" "$results" "$site"
left() { echo $((seconds - 10 - (SECONDS - begun))); } # 10 s to pack; the command of a step gets 15 s less, for its start and its table

pack() {
  code=$?
  trap - EXIT
  tar -czf "$OUT/$step.tgz" -C "$work" --exclude='*.safetensors' --exclude='*.udkd' --exclude=images --exclude=data "$step"
  echo "$step ended with exit code $code after $((SECONDS - begun)) s: $(du -h "$OUT/$step.tgz" | cut -f1) in $OUT/$step.tgz"
  exit "$code"
}
trap pack EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

for wheel in .gpu/lite/*.whl; do # a wheel is an archive: no pip needed
  [ -e "$wheel" ] && [ ! -e "$site/.${wheel##*/}" ] && "$PYTHON3" -m zipfile -e "$wheel" "$site" && touch "$site/.${wheel##*/}"
done
[ -e udkd/data_prep/__init__.py ] || ln -sfn ../data_prep udkd/data_prep # a copy of the tree may have no link, or a text file for it
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH} OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 TERM=dumb COLUMNS=160
[ -s .gpu/commit ] && export UDKD_COMMIT=${UDKD_COMMIT:-$(cat .gpu/commit)}
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader 2>/dev/null

# A command that takes too long gets SIGTERM, so that it saves, and SIGKILL eight seconds later.
within() { timeout --signal=TERM --kill-after=8 "$(left)" "$@"; }

case $step in
first)
  rm -rf "$results/runs" # of an earlier run
  within "$PYTHON3" -m benchmarks first --budget $(($(left) - 15)) --device "$DEVICE" --folder "$results/runs" --results "$results"
  ;;
bench) within "$PYTHON3" -m benchmarks gpu --rest --budget $(($(left) - 15)) --device "$DEVICE" --results "$results" ${PARTS:-} ;;
study)
  mkdir -p "$work/tars"
  for packed in .gpu/tars/*.tar.xz; do
    tar=$work/tars/$(basename "$packed" .xz)
    [ -s "$tar" ] || { xz -dc "$packed" >"$tar.part" && mv "$tar.part" "$tar"; } || exit
  done
  [ -e "$work/images/dataset.json" ] || within "$PYTHON3" -m udkd.data_prep convert "$work"/tars/train-*.tar "$work/tars/val.tar" \
    "$work/images" --side 64 --formats resident || exit
  minutes=$(awk "BEGIN { print ($(left) - 15) / 60 }")
  # shellcheck disable=SC2086  # arguments of the study command
  within "$PYTHON3" -m udkd study ${STUDIES:-table3 table1 weights direction} --recipe tiny-imagenet-100 --data "$work/images" \
    --out "$results" --seeds 0,1,2 --device "$DEVICE" --max-minutes "$minutes" ${SETTINGS:---epochs 20 --set fit.epochs=30}
  code=$?
  [ $code = 75 ] && echo "time is up: run it again to continue"
  exit $code
  ;;
esac
