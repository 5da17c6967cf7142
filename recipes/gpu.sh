#!/usr/bin/env bash
# The large model on one CUDA GPU, and its student: all clean nouns at 128 pixels. Call it again and again until it says
# that it is done: what it built stays in WORK, and the training, then the student's, goes on where it was.
# usage: recipes/gpu.sh OUT
# settings: WORK FOR (of the teacher) FEW (of the student) SCENES SIZE NOUNS PRESET SCALE PYTHON FONT
#           BUDGET (seconds of one call; what the teacher leaves of them is the student's)
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?usage: recipes/gpu.sh OUT}
WORK=${WORK:-.work/gpu} FOR=${FOR:-24m} FEW=${FEW:-8m} SCENES=${SCENES:-300k} SIZE=${SIZE:-128} NOUNS=${NOUNS:-all}
PRESET=${PRESET:-small} SCALE=${SCALE:-4}
BUDGET=${BUDGET:-500} PYTHON=${PYTHON:-python3} FONT=${FONT:-.work/font/NotoColorEmoji.ttf}
WORK=$(mkdir -p "$WORK" && cd "$WORK" && pwd)
export PYTHONPATH=src XDG_CACHE_HOME=${XDG_CACHE_HOME:-$WORK/cache} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
began=$SECONDS
ENOUGH=20 # seconds, below which nothing long is begun

# A part of the work for what is left of this call. Ctrl-C is how a person stops it: at a clean point, with a checkpoint.
part() {
    local left=$((BUDGET - (SECONDS - began))) begun=$SECONDS code=0
    [ "$left" -ge "$ENOUGH" ] || return 0
    echo "$1: for at most $left seconds of this call"
    timeout --foreground --signal=INT --kill-after=60 "$left" "$PYTHON" -m unspeckle "$@" || code=$?
    case $code in
        0 | 124) ;; # done, or stopped by us
        137) [ $((SECONDS - begun)) -ge "$left" ] || exit 137 ;; # by force, if its time was up
        *) exit "$code" ;; # a person's Ctrl-C too
    esac
}

# What there is to see of a run.
keep() {
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
part train "$WORK/scenes" --out "$WORK/run" --for "$FOR" --size "$SIZE" --preset "$PRESET"
keep "$WORK/run" ""
if [ -f "$WORK/run/model.safetensors" ]; then
    part distil "$WORK/run" --corpus "$WORK/scenes" --out "$WORK/few" --for "$FEW" --scale "$SCALE"
    keep "$WORK/few" few-
fi
if [ -f "$WORK/few/model.safetensors" ]; then
    "$PYTHON" recipes/embed.py "$WORK/few" --corpus-seed 1 --recipe recipes/gpu.sh --dtype int8 --scale "$SCALE" --apart \
        --out "$OUT/embedded.safetensors"
    echo "done: $OUT/embedded.safetensors"
else
    echo "not done yet; call it again"
fi
