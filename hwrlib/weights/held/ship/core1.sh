#!/usr/bin/env bash
# On core 1: the three reports in float32, the rest of the second reader, the confidences.
set -euo pipefail
cd /work/main; export PATH=/work/train/venv/bin:$PATH PYTHONPATH=/work/main OMP_NUM_THREADS=1; S=/work/train/held/ship P=/work/plan
taskset -c 1 python $S/memo.py 1
until [ -e $P/calibrated ]; do sleep 2; done
taskset -c 1 python $S/conf.py > $P/conf.txt
