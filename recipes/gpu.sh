#!/usr/bin/env bash
# The large model on one CUDA GPU: all clean nouns at 128 pixels. Call it again and again until it says that it is done:
# what it built stays in WORK, and the training goes on where it was.
# usage: recipes/gpu.sh OUT      settings: WORK FOR SCENES SIZE NOUNS PRESET BUDGET (seconds of one call) PYTHON FONT
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?usage: recipes/gpu.sh OUT}
WORK=${WORK:-.work/gpu} FOR=${FOR:-24m} SCENES=${SCENES:-300k} SIZE=${SIZE:-128} NOUNS=${NOUNS:-all} PRESET=${PRESET:-small}
BUDGET=${BUDGET:-500} PYTHON=${PYTHON:-python3} FONT=${FONT:-.work/font/NotoColorEmoji.ttf}
export PYTHONPATH=src XDG_CACHE_HOME=${XDG_CACHE_HOME:-$PWD/$WORK/cache} PYTHONUNBUFFERED=1
mkdir -p "$OUT" "$WORK"
began=$SECONDS
if [ -f "$FONT" ]; then
    mkdir -p ~/.local/share/fonts
    cp -n "$FONT" ~/.local/share/fonts/
fi
if [ ! -f "$WORK/scenes/about.json" ]; then
    rm -rf "$WORK/scenes"
    "$PYTHON" -m unspeckle make-corpus emoji "$WORK/scenes" --scenes "$SCENES" --seed 1 --nouns "$NOUNS" --size "$SIZE"
fi
left=$((BUDGET - (SECONDS - began)))
echo "training for at most $left seconds of this call"
# Ctrl-C is how a person stops it: at a clean point, with a checkpoint.
timeout --signal=INT --kill-after=60 "$left" \
    "$PYTHON" -m unspeckle train "$WORK/scenes" --out "$WORK/run" --for "$FOR" --size "$SIZE" --preset "$PRESET" || true
cp "$WORK/run/log.jsonl" "$WORK/run/plan.json" "$OUT/" 2>/dev/null || true
newest=$(ls -t "$WORK"/run/samples/*.png 2>/dev/null | head -1 || true)
[ -z "$newest" ] || cp "$newest" "$OUT/samples.png"
if [ -f "$WORK/run/model.safetensors" ]; then
    "$PYTHON" recipes/embed.py "$WORK/run" --corpus-seed 1 --recipe recipes/gpu.sh --dtype int8 --scale 4 --out "$OUT/embedded.safetensors"
    echo "done: $OUT/embedded.safetensors"
else
    echo "not done yet; call it again"
fi
