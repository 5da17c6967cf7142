#!/usr/bin/env bash
# Half an hour on a folder of photos in class folders, then eight pictures of each class for a judge.
# usage: recipes/clothing.sh FOLDER OUT
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 out=$2
.venv/bin/unspeckle train "$folder" --out "$out/run" --size 64 --for 30m
for class in "$folder"/*/; do
    name=$(basename "$class")
    case $name in
        pants | shoes | shorts) what=$name ;;
        outwear) what="an outwear" ;;
        *) what="a $name" ;;
    esac
    .venv/bin/unspeckle draw "a photo of $what" --model "$out/run" --count 8 --seed 100 --out "$out/drawn/$name" --quiet
done
