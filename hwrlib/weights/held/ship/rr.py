"""Texts of a part of the validation lines for scripts.rerank: rr.py PART PARTS OUT.jsonl."""
import itertools, json, sys
from hwrlib.data import load_lines
from hwrlib.scripts.rerank import collect
part, parts, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rows = load_lines("validation", "/work/shared/iam-line/data")
begin, end = (len(rows) * k // parts for k in (part, part + 1))
with open(out, "w") as file:
    for line in itertools.islice(collect(rows, "/work/plan/smollm2", begin), end - begin):
        print(json.dumps(line), file=file, flush=True)
