#!/bin/sh
# The mini checkpoint from texts to what ships: ./recipes/mini.sh [RUN_FOLDER]
#
# On two CPU cores about two hours; docs/mini.md has the figures. Every step goes on where it was stopped, so the
# script may be run again at any time. What ships appears in RUN_FOLDER/export.
set -eu
run=${1:-runs/mini}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two processes of one thread beat one of two

# Questions by many voices, and the held-out ones. Shards that exist are kept. `heard` are questions nobody answers:
# without words in many surroundings the adaptor learns the questions by heart (docs/mini.md).
omni train data --output "$run" --voice hibari --count 11000 &
omni train data --output "$run" --voice hibari --count 12000 --texts heard
omni train data --output "$run" --voice joe --count 500
wait
test -f "$run/heldout/heldout.jsonl" || omni train heldout --output "$run/heldout"

# Understanding: the adaptor learns to hear, then it and the LLM learn to answer.
omni train stage1 --output "$run" --phase hear --minutes 19 --heldout "$run/heldout/heldout.jsonl"
omni train stage1 --output "$run" --phase read --minutes 7 --heldout "$run/heldout/heldout.jsonl"
omni train stage1 --output "$run" --phase answer --minutes 26 --heldout "$run/heldout/heldout.jsonl"

# Speaking: one voice's answers become units, a vocoder learns to speak them, and the unit decoder to think them.
omni train units --answers "$run/answers.jsonl" --voice "$run/voice"
omni train vocoder --voice "$run/voice" --output "$run/export/vocoder" --minutes 27
omni train stage2 states --answers "$run/answers.jsonl" --voice "$run/voice" \
    --delta "$run/export/llm_delta.safetensors" --output "$run/states"
omni train stage2 train --states "$run/states" --voice "$run/voice" --output "$run/stage2" --minutes 40 --aligned-minutes 10
cp "$run/stage2/unit_decoder.safetensors" "$run/export/"
