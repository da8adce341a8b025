#!/usr/bin/env bash
# On core 1: the three reports in float32, the confidences, the other half of the second reader.
set -euo pipefail
cd /work/main; export PATH=/work/train/venv/bin:$PATH PYTHONPATH=/work/main OMP_NUM_THREADS=1; S=/work/train/held/ship P=/work/plan
for d in greedy beam language; do
  name=results_$d; [ $d = greedy ] && name=results
  more=; [ $d = language ] && more="--predictions $P/language.csv"
  taskset -c 1 python -m hwrlib evaluate --data ../shared/iam-line/data --split validation --decoder $d --precision fp32 --report notebooks/recorded/$name.json $more
done
until [ -e $P/calibrated ]; do sleep 2; done
taskset -c 1 python $S/conf.py > $P/conf.txt
taskset -c 1 python $S/rr.py 1 2 $P/texts_1.jsonl
