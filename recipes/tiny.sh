#!/bin/sh
# The whole pipeline, tiny: ./recipes/tiny.sh [RUN_FOLDER]. A minute or two on two CPU cores, from texts to a checkpoint
# that `omni up --model RUN_FOLDER/checkpoint` serves. It shows that every stage runs and fits the next, not how good it
# gets: the LLM is a tiny one with random weights. The stages are those of mini.sh, with other numbers; the tests run it.
set -eu
run=${1:-runs/tiny}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

omni train llm --output "$run/llm" --size tiny
omni train data --output "$run" --voice hibari --count 60
omni train heldout --output "$run/heldout" --chitchat 2 --factual 2
omni train stage1 --output "$run" --phase hear --minutes 0.05 --tune-encoder 2 --heldout "$run/heldout/heldout.jsonl"
omni train stage1 --output "$run" --phase read --minutes 0.05 --rank 4 --heldout "$run/heldout/heldout.jsonl"
omni train stage1 --output "$run" --phase answer --minutes 0.05 --rank 4 --heldout "$run/heldout/heldout.jsonl"

omni train units --answers "$run/answers.jsonl" --voice "$run/voice" --limit 20 --sentences 10 --units 40
omni train vocoder --voice "$run/voice" --output "$run/export/vocoder" --steps 4 --batch 4 --heldout 2
omni train stage2 states --answers "$run/answers.jsonl" --voice "$run/voice" --llm "$run/llm" \
    --delta "$run/export/llm_delta.safetensors" --output "$run/states"
omni train stage2 train --states "$run/states" --voice "$run/voice" --llm "$run/llm" --output "$run/stage2" \
    --shape "(1,64,2,128)" --steps 150 --aligned-minutes 25 --rate 1e-2 --agreed 0 --batch 8 --heldout 2
cp "$run/stage2/unit_decoder.safetensors" "$run/export/"
omni train assemble --run "$run" --output "$run/checkpoint"
