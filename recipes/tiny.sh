#!/bin/sh
# The whole pipeline, tiny: ./recipes/tiny.sh [RUN_FOLDER]. Minutes on two CPU cores; it shows that every stage runs
# and what it writes, not how good it gets. The stages are those of mini.sh, with other numbers.
set -eu
run=${1:-runs/tiny}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

omni train data --output "$run" --voice hibari --count 120
test -f "$run/heldout/heldout.jsonl" || omni train heldout --output "$run/heldout" --chitchat 3 --factual 3
omni train stage1 --output "$run" --phase hear --minutes 0.5 --heldout "$run/heldout/heldout.jsonl"
omni train stage1 --output "$run" --phase read --minutes 0.5 --rank 8 --heldout "$run/heldout/heldout.jsonl"
omni train stage1 --output "$run" --phase answer --minutes 0.5 --rank 8 --heldout "$run/heldout/heldout.jsonl"

omni train units --answers "$run/answers.jsonl" --voice "$run/voice" --sentences 30 --units 40
omni train vocoder --voice "$run/voice" --output "$run/export/vocoder" --minutes 0.5 --heldout 5
omni train stage2 states --answers "$run/answers.jsonl" --voice "$run/voice" \
    --delta "$run/export/llm_delta.safetensors" --output "$run/states"
omni train stage2 train --states "$run/states" --voice "$run/voice" --output "$run/stage2" \
    --minutes 0.6 --aligned-minutes 0.3 --heldout 5
cp "$run/stage2/unit_decoder.safetensors" "$run/export/"
