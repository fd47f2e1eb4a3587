#!/bin/sh
# The mini checkpoint from texts to what ships: ./recipes/mini.sh [RUN_FOLDER]
#
# On two CPU cores about two hours; docs/mini.md has the figures. Every step goes on where it was stopped, so the
# script may be run again at any time. What ships appears in RUN_FOLDER/export.
set -eu
run=${1:-runs/mini}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two processes of one thread beat one of two

# Questions, and sentences that are only heard: without words in many surroundings the adaptor learns the questions by
# heart (docs/mini.md). Shards that exist are kept.
omni train data --output "$run" --voice hibari --count 14000 &
omni train data --output "$run" --voice hibari --count 16657 --texts heard
omni train data --output "$run" --voice hibari --count 20000 --texts mixed --seed 0 &
omni train data --output "$run" --voice hibari --count 20000 --texts mixed --seed 1
wait

# Understanding: the LLM learns to answer, in writing and aloud, and the adaptor to hear. The deltas that ship are those
# of the first version, whose adaptor had heard for 19 minutes; the adaptor went on and hands on the tokens it hears.
omni train stage1 --output "$run" --phase hear --minutes 19
omni train stage1 --output "$run" --phase read --minutes 7
omni train stage1 --output "$run" --phase answer --minutes 26
omni train stage1 --output "$run" --phase hear --minutes 36 --tokens

# Speaking: one voice's answers become units, a vocoder learns to speak them, and the unit decoder to think them.
omni train units --answers "$run/answers.jsonl" --voice "$run/voice"
omni train vocoder --voice "$run/voice" --output "$run/export/vocoder" --minutes 27
omni train stage2 states --answers "$run/answers.jsonl" --voice "$run/voice" \
    --delta "$run/export/llm_delta.safetensors" --output "$run/states"
omni train stage2 train --states "$run/states" --voice "$run/voice" --output "$run/stage2" --minutes 40 --aligned-minutes 10
cp "$run/stage2/unit_decoder.safetensors" "$run/export/"
