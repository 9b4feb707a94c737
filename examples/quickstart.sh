#!/usr/bin/env bash
# From nothing to a scene to look at: installs, generates a room, trains on it, evaluates, and says how
# to open the viewer. Needs python3 and pip only. Safe to run again.
#
#   bash examples/quickstart.sh [folder]     default folder: quickstart
#
# STEPS sets the length of training (default 2500).
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-quickstart}
steps=${STEPS:-2500}
source "$project/examples/environment.sh"
make_environment

begin=$SECONDS
run="$folder/runs/demo/ps4pro-splatfacto/quickstart"
rm -rf "$run" "$folder/evaluation"
ps4pro demo-scene "$folder/scene" --overwrite

training=$SECONDS
ns-train ps4pro-splatfacto --data "$folder/scene" --max-num-iterations "$steps" \
    --output-dir "$folder/runs" --experiment-name demo --timestamp quickstart \
    --vis tensorboard --logging.local-writer.max-log-size 0 >"$folder/train.log" 2>&1 ||
    { tail -n 20 "$folder/train.log"; exit 1; }
training=$((SECONDS - training))
grep '^ps4pro' "$folder/train.log" || true

ns-eval --load-config "$run/config.yml" --output-path "$folder/evaluation/metrics.json" \
    --render-output-path "$folder/evaluation/images" >"$folder/eval.log" 2>&1 ||
    { tail -n 20 "$folder/eval.log"; exit 1; }
ps4pro summary --load-config "$run/config.yml" --eval-json "$folder/evaluation/metrics.json" \
    --eval-images "$folder/evaluation/images" --picture "$folder/truth_and_render.png" \
    --train-seconds "$training"

echo "Finished in $((SECONDS - begin)) s after installation."
echo "Walk through the scene:"
echo "  PATH=$(dirname "$(command -v ns-viewer)"):\$PATH ns-viewer --load-config $run/config.yml" \
    "--viewer.websocket-host 127.0.0.1"
