#!/usr/bin/env bash
# The model inside the package, from nothing: about 95 minutes on two cores. Needs the font of fonts-noto-color-emoji.
# WORK is where the corpus and the run lie.
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${WORK:-.work}
nouns=frog,rabbit,panda,cat,dog,bear,fox,lion,monkey,pig,mouse,koala,elephant,turtle,fish,penguin,butterfly
nouns+=,tree,cactus,mushroom,apple,banana,strawberry,pizza,hamburger,car,rocket,sailboat,house,star,heart,guitar
[ -d "$WORK/scenes" ] || .venv/bin/unspeckle make-corpus emoji "$WORK/scenes" --scenes 80000 --seed 1 --nouns "$nouns"
.venv/bin/unspeckle train "$WORK/scenes" --out "$WORK/embedded" --for 60m --preset small
.venv/bin/unspeckle distil "$WORK/embedded" --corpus "$WORK/scenes" --out "$WORK/embedded-few" --for 30m
.venv/bin/python recipes/embed.py "$WORK/embedded-few" --corpus-seed 1 --dtype int8
