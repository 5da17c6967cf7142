#!/usr/bin/env bash
# Train the large model and its student on one CUDA GPU: all clean nouns at 128 pixels. Call it again until it says that
# it is done. What it made stays in WORK, and training continues where it stopped.
# usage: recipes/gpu.sh OUT
# settings: WORK TRAIN_TIME (of the teacher) DISTIL_TIME (of the student) SCENES SIZE NOUNS PRESET GUIDANCE_SCALE PYTHON
#           FONT BUDGET (seconds of one call; the student gets what the teacher leaves of them)
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?usage: recipes/gpu.sh OUT}
WORK=${WORK:-.work/gpu} TRAIN_TIME=${TRAIN_TIME:-24m} DISTIL_TIME=${DISTIL_TIME:-8m}
SCENES=${SCENES:-300k} SIZE=${SIZE:-128} NOUNS=${NOUNS:-all} PRESET=${PRESET:-small} GUIDANCE_SCALE=${GUIDANCE_SCALE:-4}
BUDGET=${BUDGET:-500} PYTHON=${PYTHON:-python3} FONT=${FONT:-.work/font/NotoColorEmoji.ttf}
WORK=$(mkdir -p "$WORK" && cd "$WORK" && pwd)
export PYTHONPATH=src XDG_CACHE_HOME=${XDG_CACHE_HOME:-$WORK/cache} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
call_start=$SECONDS
SHORTEST=20 # seconds; no long command is started with less time left

# Run a command for the rest of this call's time. It is stopped as Ctrl-C stops it: at a clean point, with a checkpoint.
run_part() {
    local left=$((BUDGET - (SECONDS - call_start))) start=$SECONDS code=0
    [ "$left" -ge "$SHORTEST" ] || return 0
    echo "$1: for at most $left seconds of this call"
    timeout --foreground --signal=INT --kill-after=60 "$left" "$PYTHON" -m unspeckle "$@" || code=$?
    case $code in
        0 | 124) ;; # finished, or stopped because its time was up
        137) [ $((SECONDS - start)) -ge "$left" ] || exit 137 ;; # killed: an error unless its time was up
        *) exit "$code" ;; # an error, or Ctrl-C
    esac
}

# Copy the log, the plan and the newest samples of a run to OUT, with a prefix.
copy_records() {
    local newest
    cp "$1/log.jsonl" "$OUT/$2log.jsonl" 2>/dev/null || true
    cp "$1/plan.json" "$OUT/$2plan.json" 2>/dev/null || true
    newest=$(ls -t "$1"/samples/step-*.png 2>/dev/null | head -1 || true)
    [ -z "$newest" ] || cp "$newest" "$OUT/$2samples.png"
}

if [ -f "$FONT" ]; then
    mkdir -p ~/.local/share/fonts
    cp -n "$FONT" ~/.local/share/fonts/
fi
if [ ! -f "$WORK/scenes/about.json" ]; then
    rm -rf "$WORK/scenes"
    "$PYTHON" -m unspeckle make-corpus emoji "$WORK/scenes" --scenes "$SCENES" --seed 1 --nouns "$NOUNS" --size "$SIZE"
fi
run_part train "$WORK/scenes" --out "$WORK/run" --for "$TRAIN_TIME" --size "$SIZE" --preset "$PRESET"
copy_records "$WORK/run" ""
if [ -f "$WORK/run/model.safetensors" ]; then
    run_part distil "$WORK/run" --corpus "$WORK/scenes" --out "$WORK/few" --for "$DISTIL_TIME" \
        --guidance-scale "$GUIDANCE_SCALE"
    copy_records "$WORK/few" few-
fi
if [ -f "$WORK/few/model.safetensors" ]; then
    "$PYTHON" recipes/embed.py "$WORK/few" --corpus-seed 1 --recipe recipes/gpu.sh --dtype int8 \
        --guidance-scale "$GUIDANCE_SCALE" --allow-separate-student --out "$OUT/embedded.safetensors"
    echo "done: $OUT/embedded.safetensors"
else
    echo "not done yet; call it again"
fi
