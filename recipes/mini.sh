#!/bin/sh
# The mini checkpoint from texts to what ships: ./recipes/mini.sh [RUN_FOLDER]
#
# On two CPU cores about eight hours; docs/mini.md has the figures. Every step goes on where it was stopped, so the
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
omni train data --output "$run" --voice joe --count 1000 &
omni train data --output "$run" --voice kokoro --count 2000
omni train data --output "$run" --voice joe --count 2000 --texts heard &
omni train data --output "$run" --voice kokoro --count 1000 --texts mixed --seed 2
omni train data --output "$run" --voice hibari --count 20000 --texts rare --seed 0 &
omni train data --output "$run" --voice joe --count 1000 --texts rare --seed 1
omni train data --output "$run" --voice kokoro --count 500 --texts rare --seed 2
omni train data --output "$run" --voice hibari --count 2000 --texts follow-ups
omni train data --output "$run" --voice joe --count 250 --texts follow-ups
wait

# Understanding: the LLM learns to answer, in writing and aloud, and the adaptor to hear; then half of the encoder learns
# with it, and it hands on the tokens it hears; then the LLM learns to answer what was misheard.
omni train stage1 --output "$run" --phase hear --minutes 19
omni train stage1 --output "$run" --phase read --minutes 7
omni train stage1 --output "$run" --phase answer --minutes 26
omni train stage1 --output "$run" --phase hear --minutes 36
omni train stage1 --output "$run/tuned" --speech "$run/speech" --phase hear --begin "$run/stage1-hear.pt" \
    --tune-encoder 2 --rate 6e-4 --minutes 110 --tokens
mkdir -p "$run/export"
cp "$run/tuned/export/adaptor.safetensors" "$run/tuned/export/encoder.safetensors" "$run/export/"
omni train stage1 --output "$run" --phase follow --minutes 70 --spoken-share 0.6

# The voice: units of its own states, and a vocoder that speaks them.
omni train voice --answers "$run/answers.jsonl" --voice "$run/voice" --num-units 1000
omni train source-filter --voice "$run/voice" --output "$run/export/vocoder" --minutes 47

# Speaking: the unit decoder learns from what the LLM thinks while it answers, most of all while it answers by itself.
omni train own --output "$run" --delta "$run/export/llm_delta.safetensors" --adaptor "$run/export/adaptor.safetensors" \
    --count 5000 --repeats 9000
cat "$run/answers.jsonl" "$run/own.jsonl" "$run/repeats.jsonl" > "$run/to-speak.jsonl"
omni train voice --answers "$run/to-speak.jsonl" --voice "$run/spoken" --units "$run/voice/units.safetensors" \
    --sentences 13000
omni train stage2 states --answers "$run/to-speak.jsonl" --voice "$run/spoken" --per-answer 2 --repeat-share 0.9 \
    --delta "$run/export/llm_delta.safetensors" --output "$run/states" \
    --speech "$run/speech" --adaptor "$run/export/adaptor.safetensors"
omni train stage2 train --states "$run/states" --voice "$run/spoken" --output "$run/stage2" --agreed 0.3 \
    --answer-weight 4 --rate 1.6e-3 --minutes 80 --aligned-minutes 30
cp "$run/stage2/unit_decoder.safetensors" "$run/export/"
