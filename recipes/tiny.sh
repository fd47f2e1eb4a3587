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
