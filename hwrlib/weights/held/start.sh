#!/usr/bin/env bash
# Two trainings at once, one core each, from the weights of a repository: start.sh REPOSITORY MINUTES SEED (and SEED + 1), in /work/train, with this folder as /work/train/held.
# Ten minutes on two cores until they run; a kill -TERM stops one, the same command line with --resume goes on (its minutes may change).
set -euo pipefail
repository=$1 minutes=$2 seed=$3
cd /work/train
git clone -q "$repository" clone && git -C clone checkout -q fa96a56     # the training
git clone -q "$repository" lines && git -C lines checkout -q f5f993f     # the simulated photos
mkdir -p data runs/new
cp "$repository"/hwrlib/weights/{config.json,model.safetensors} runs/new/
cp held/fast*.cpp held/fast*.py held/fused.* .
python3.11 -m venv venv
venv/bin/pip install -q -r "$repository/requirements.txt" -c "$repository/constraints.txt" fonttools brotli ninja setuptools torch==2.13.0
export PATH=/work/train/venv/bin:$PATH OMP_NUM_THREADS=1
(python held/build.py iam; for part in strokes words; do python held/build.py $part; done; python held/photo_validation.py /work/train/lines 250; python held/small_validation.py; python held/photo.py /work/train/lines 2600) > data0.log 2>&1 &
(python held/build.py hooker; until [ -s data/iam_validation.pkl ]; do sleep 5; done; python held/build.py fonts_caps; python held/caps_validation.py; python held/build.py fonts_beyond) > data1.log 2>&1 &
wait
# tune10.py takes tiles where there is no AMX, with products in float16 (AVX-512 float16), bfloat16 (AVX-512) or whole numbers (AVX2).
# One after the other: two that compile at once wait for each other, and for ever where one of them is stopped.
for k in 0 1; do
  setsid nohup taskset -c $k nice -n -10 python held/tune10.py "$minutes" runs/$((seed + k)) /work/train/runs/new $((seed + k)) 10,2,3,1,1,1,2 0.6 0.4 2.5e-4 > $((seed + k)).log 2>&1 &
  until grep -q " lines$" $((seed + k)).log; do sleep 2; done
done
for process in $(pgrep -f held/tune10.py); do echo -8 > /proc/$process/autogroup; done
