#!/usr/bin/env bash
# After the weights are in hwrlib/weights: calibration, real pictures, half of the second reader. On core 0, beside core1.sh.
set -euo pipefail
cd /work/main; export PATH=/work/train/venv/bin:$PATH PYTHONPATH=/work/main OMP_NUM_THREADS=1; S=/work/train/held/ship P=/work/plan
rm -f $P/calibrated
taskset -c 0 python -m hwrlib.scripts.calibration /work/shared/iam-line/data /work/shared/hooker/data --precision ${PRECISION:-bf16}
touch $P/calibrated
taskset -c 0 python ../shared/real/score.py $P/score.json > $P/score.txt
taskset -c 0 python $S/rr.py 0 2 $P/texts_0.jsonl
