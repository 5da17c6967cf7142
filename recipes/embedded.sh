#!/usr/bin/env bash
# Make the model inside the package from scratch, in about two hours. Needs the font of fonts-noto-color-emoji.
# WORK is the folder for the corpus and the runs.
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${WORK:-.work}
nouns=frog,rabbit,panda,cat,dog,bear,fox,lion,monkey,pig,mouse,koala,cow,elephant,turtle,fish,octopus,crab,penguin
nouns+=,butterfly,tree,cactus,sunflower,mushroom,apple,banana,strawberry,carrot,pizza,hamburger,doughnut,car,rocket
nouns+=,sailboat,house,balloon,star,heart,guitar,robot
[ -d "$WORK/scenes" ] || .venv/bin/unspeckle make-corpus emoji "$WORK/scenes" --scenes 120000 --seed 1 --nouns "$nouns"
.venv/bin/unspeckle train "$WORK/scenes" --out "$WORK/embedded" --for 100m --preset tiny
.venv/bin/unspeckle distil "$WORK/embedded" --corpus "$WORK/scenes" --out "$WORK/embedded-few" --for 20m \
    --guidance-scale 4
.venv/bin/python recipes/embed.py "$WORK/embedded-few" --corpus-seed 1 --dtype int8 --guidance-scale 4 --steps 12
