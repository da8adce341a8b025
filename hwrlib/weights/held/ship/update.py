"""The rows of results and real pictures in README and model card, from the recorded files; real.csv from score.json."""
import collections, csv, json, re, sys
from pathlib import Path
root = Path("/work/main"); R = root / "notebooks/recorded"
sys.path[:0] = ["/work/shared/real"]
rows = json.load(open("/work/plan/score.json"))
groups = collections.defaultdict(lambda: [0, 0.0, 0])
plain = lambda t: re.sub(r"\s+", " ", re.sub(r" (?=[.,;:!?)])", "", t.replace("\n", " "))).strip()
texts = {r["file"]: r["text"] for r in csv.DictReader(open("/work/shared/real/manifest.csv", encoding="utf-8"))}
for row in rows:
    group, want = Path(row["file"]).name.split("_")[0], plain(texts[row["file"]])
    group = group if group in ("csafe", "code", "hooker", "forms") else "others"
    want = want.replace(" ", "").lower() if group == "code" else want
    for k, v in enumerate((1, row["cer"] * len(want), len(want))): groups[group][k] += v
real = list(csv.DictReader(open(R / "real.csv")))
for row in real:
    files, wrong, characters = groups[row["group"]]
    assert (int(row["files"]), int(row["characters"])) == (files, characters), row
    row["cer"] = f"{wrong / characters:.4g}"
with open(R / "real.csv", "w", newline="") as f:
    w = csv.DictWriter(f, real[0].keys(), lineterminator="\n"); w.writeheader(); w.writerows(real)
cers = [min(1, r["cer"]) for r in rows]
print("mean", sum(cers) / len(cers), "confidence off by", sum(abs(r["confidence"] - 1 + min(1, r["cer"])) for r in rows) / len(rows))
reports = {n: json.load(open(R / f"{n}.json")) for n in ("results", "results_beam", "results_language")}
named = {"greedy, all": ("results", "all"), "greedy, grey scans": ("results", "grey"), "greedy, 1-bit scans": ("results", "bin"), "prefix beam 32, all": ("results_beam", "all"),
  "prefix beam 32 + character 6-gram, all": ("results_language", "all"), "the same, grey scans": ("results_language", "grey"), "the same, 1-bit scans": ("results_language", "bin")}
for name in ("README.md", "hwrlib/weights/README.md"):
    s = (root / name).read_text()
    for label, (report, part) in named.items():
        x = reports[report][part]
        cells = [f"{x[k]['rate']:.2%} ({x[k]['low']:.2%} to {x[k]['high']:.2%})" for k in ("cer", "wer")]
        s, n = re.subn(rf"^\| {re.escape(label)} \|.*$", f"| {label} | {x['lines']} | {cells[0]} | {cells[1]} |", s, flags=re.M); assert n == 1, label
    for row in real:
        s, n = re.subn(rf"^(\| [^|\n]*\| {row['files']} \|) [\d.]+ % \|$", lambda m: m[0], s, flags=re.M)
    for row in real:
        keys = {"csafe": "neat modern", "others": "notes, whiteboards", "forms": "fields of forms", "code": "program code", "hooker": "letters of a nineteenth"}
        s, n = re.subn(rf"^(\| {keys[row['group']]}[^|]*\| \d+ \|) [\d.]+ % \|$", lambda m: f"{m[1]} {100 * float(row['cer']):.1f} % |", s, flags=re.M); assert n == 1, row
    if "weights" in name:
        for report in ("results", "results_language"):
            at = s.index("(greedy)" if report == "results" else "(prefix beam")
            for kind in ("cer", "wer"):
                s = s[:at] + re.sub(rf"\{{type: {kind}, value: [\d.]+\}}", f"{{type: {kind}, value: {reports[report]['all'][kind]['rate']:.4f}}}", s[at:], count=1)
    (root / name).write_text(s)
for n, r in reports.items():
    print(n, {k: round(100 * v["accuracy"], 1) for k, v in r["all"]["classes"].items()}, {k: round(100 * r["all"]["without_spaces_before_punctuation"][k]["rate"], 2) for k in ("cer", "wer")})
