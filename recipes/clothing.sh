#!/usr/bin/env bash
# Train for half an hour on photos in class folders, then draw eight images of each class, to be judged.
# usage: recipes/clothing.sh FOLDER OUT
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 out=$2
.venv/bin/unspeckle train "$folder" --out "$out/run" --size 64 --for 30m
for class in "$folder"/*/; do
    name=$(basename "$class")
    case $name in
        pants | shoes | shorts) noun=$name ;;
        outwear) noun="an outwear" ;;
        *) noun="a $name" ;;
    esac
    .venv/bin/unspeckle draw "a photo of $noun" --model "$out/run" --count 8 --seed 100 --out "$out/drawn/$name" --quiet
done
