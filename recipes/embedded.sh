#!/usr/bin/env bash
# Make the model inside the package from nothing: 128 nouns at 128 × 128 pixels, for two cores of a CPU. It needs the font
# of fonts-noto-color-emoji. Stopped, it goes on where it stopped when it is called again: parts that are finished are
# passed over. WORK/times.txt says how many minutes each part took (one line a call).
# usage: recipes/embedded.sh
# settings: WORK (folder of the corpora and runs), FIRST_TIME and SECOND_TIME (of the teacher), STUDENT_TIME, OUT (the file)
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${WORK:-.work} FIRST_TIME=${FIRST_TIME:-97m} SECOND_TIME=${SECOND_TIME:-150m} STUDENT_TIME=${STUDENT_TIME:-30m}
OUT=${OUT:-src/unspeckle/models/embedded.safetensors} PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$WORK"

# Run one part, by its name and its command, and write down how long it took, also if it was stopped.
run_part() {
    local name=$1 start=$SECONDS code=0
    shift
    "$PYTHON" "$@" || code=$?
    echo "$(date '+%F %T')  $name: $(((SECONDS - start + 30) / 60)) min, exit $code" >>"$WORK/times.txt"
    [ "$code" -eq 0 ] || exit "$code"
}

# Paint 120,000 scenes with that seed; a folder that was not finished is painted again.
paint_scenes() {
    [ -f "$WORK/scenes-$1/about.json" ] && return
    rm -rf "$WORK/scenes-$1"
    run_part "scenes of seed $1" -m unspeckle make-corpus emoji "$WORK/scenes-$1" --scenes 120k --seed "$1" --size 128
}

paint_scenes 2
run_part "teacher, first run" -m unspeckle train "$WORK/scenes-2" --out "$WORK/first" --for "$FIRST_TIME" --size 128 \
    --preset tiny
paint_scenes 3
run_part "teacher, second run" -m unspeckle train "$WORK/scenes-3" --out "$WORK/second" --from "$WORK/first" \
    --for "$SECOND_TIME"
run_part "student" -m unspeckle distil "$WORK/second" --corpus "$WORK/scenes-3" --out "$WORK/few" --for "$STUDENT_TIME" \
    --guidance-scale 4
"$PYTHON" recipes/embed.py "$WORK/few" --corpus-seed 3 --dtype int8 --guidance-scale 4 --steps 12 --out "$OUT"
cat "$WORK/times.txt"
