#!/usr/bin/env bash
# After the weights are in hwrlib/weights: calibration, real pictures, a third of the second reader. On core 0, beside core1.sh.
set -euo pipefail
cd /work/main; export PATH=/work/train/venv/bin:$PATH PYTHONPATH=/work/main OMP_NUM_THREADS=1; S=/work/train/held/ship P=/work/plan
rm -f $P/calibrated
taskset -c 0 python $S/memo.py 0
touch $P/calibrated
taskset -c 0 python ../shared/real/score.py $P/score.json > $P/score.txt
taskset -c 0 python $S/rr.py 0 3 $P/texts_0.jsonl
