// A pad for handwriting. Its strokes are those of hwrlib.strokes.render_strokes: one flat list [x0, y0, x1, y1, ...] for
// each time the pen was down, in pixels, y downwards; `rows` has the line of each. SVG stays sharp on every screen.
const ROW = 170; // px of height for a line
const BASELINE = 112;
const PAUSE = 400; // ms without a pen on the pad after which the strokes go to Python
const PALM = 2000; // ms after the pen in which a touch is the hand that holds it
const LABEL =
  "Drawing pad: write with mouse, pen or finger. Enter begins a new line, Control+Z undoes, Control+Y redoes, Escape clears.";

function render({ model, el }) {
  el.classList.add("hwr-pad");
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab leaves our keys to us
  const [baselines, ink] = [make("g"), make("g")];
  const sheet = make("svg", { tabindex: 0, role: "application", "aria-label": LABEL, pointerdown: down, pointerup: up,
    pointercancel: up, pointermove: (event) => current?.pointer === event.pointerId && add(event) }, baselines, ink);
  const status = make("span", { role: "status", "aria-live": "polite", class: "hwr-small" });
  const undoButton = button("Undo", () => step(past, future));
  const redoButton = button("Redo", () => step(future, past));
  const clearButton = button("Clear", () => change({ strokes: [], lines: 1 }));
  const lineButton = button("New line", newLine);
  el.append(sheet, make("div", { class: "hwr-bar" }, undoButton, redoButton, clearButton, lineButton, status));

  let now = { strokes: [], lines: 1 }; // what is on the pad; never changed, only replaced: so Clear is undone, too
  let past = [];
  let future = [];
  let current = null; // the stroke {points, pressures, row} under the pen
  let lastPen = -Infinity;
  let timer = 0;

  const drawn = () => (current ? [...now.strokes, current] : now.strokes);
  const lists = () => now.strokes.map(({ points }) => points);

  // The part of a stroke that ends at point k, as wide as the pen was pressed; a mouse has 0.5. The first is a dot.
  function part({ points, pressures }, k) {
    const [[x1, y1], [x2, y2]] = [Math.max(0, k - 1), k].map((at) => points.slice(2 * at, 2 * at + 2));
    return make("line", { x1, y1, x2, y2, "stroke-width": (1.5 + 3 * (pressures[k] ?? 0.5)).toFixed(2) });
  }

  const line = (stroke) => make("g", {}, ...Array.from({ length: stroke.points.length / 2 }, (_, k) => part(stroke, k)));

  function show() {
    const count = now.strokes.length;
    ink.replaceChildren(...drawn().map(line));
    const levels = Array.from({ length: now.lines }, (_, k) => k * ROW + BASELINE);
    baselines.replaceChildren(...levels.map((y) => make("line", { class: "hwr-baseline", x1: 0, x2: "100%", y1: y, y2: y })));
    status.textContent = count === 0 ? "Nothing written yet" : count === 1 ? "1 stroke" : `${count} strokes`;
    undoButton.disabled = !past.length;
    redoButton.disabled = !future.length;
    clearButton.disabled = !count && now.lines === 1;
    lineButton.disabled = !now.strokes.some(({ row }) => row === now.lines - 1);
    fit();
  }

  function fit() {
    const width = sheet.clientWidth;
    if (!width) return; // not on the screen yet
    const right = lists().flat().reduce((most, value, k) => (k % 2 ? most : Math.max(most, value)), 0);
    const needed = Math.max(width, right + 10); // a narrower window shows the writing smaller
    sheet.setAttribute("viewBox", `0 0 ${needed} ${now.lines * ROW}`);
    sheet.style.height = `${Math.round((now.lines * ROW * width) / needed)}px`;
  }

  function replace(next) {
    now = next;
    show();
    clearTimeout(timer);
    timer = setTimeout(save, PAUSE);
  }

  function change(next) {
    if (current) return;
    past.push(now);
    future = [];
    replace(next);
  }

  function step(from, to) {
    if (current || !from.length) return;
    to.push(now);
    replace(from.pop());
  }

  function newLine() {
    if (!lineButton.disabled) change({ ...now, lines: now.lines + 1 });
  }

  function save() {
    timer = 0;
    model.set("rows", now.strokes.map(({ row }) => row));
    model.set("strokes", lists().map((points) => [...points]));
    model.save_changes();
    ask(model, { kind: "here" }, [], (late) => (late ? (status.textContent = SILENT) : show()));
  }

  function load() {
    const [wanted, rows] = [model.get("strokes"), model.get("rows")];
    if (JSON.stringify(wanted) === JSON.stringify(lists())) return;
    const strokes = wanted.map((points, k) => ({ points: [...points], pressures: [], row: rows[k] ?? 0 }));
    past.push(now);
    now = { strokes, lines: 1 + Math.max(0, ...strokes.map(({ row }) => row)) };
    show();
  }

  function add(event) {
    const moves = event.getCoalescedEvents?.() ?? [];
    const toSheet = sheet.getScreenCTM().inverse();
    for (const { clientX, clientY, pressure } of moves.length ? moves : [event]) {
      const { x, y } = new DOMPoint(clientX, clientY).matrixTransform(toSheet);
      current.points.push(Math.round(x * 10) / 10, Math.round(y * 10) / 10);
      current.pressures.push(pressure || (current.pressures.at(-1) ?? 0.5)); // a pen that leaves has 0
      ink.lastChild.append(part(current, current.pressures.length - 1));
    }
    if (event.pointerType === "pen") lastPen = performance.now();
  }

  function down(event) {
    const palm = event.pointerType === "touch" && performance.now() - lastPen < PALM;
    if (current && event.pointerType === "pen" && current.type === "touch") current = null; // the hand came first
    if (current || event.button !== 0 || palm) return;
    event.preventDefault();
    clearTimeout(timer);
    sheet.focus({ preventScroll: true });
    sheet.setPointerCapture(event.pointerId);
    current = { points: [], pressures: [], row: now.lines - 1, pointer: event.pointerId, type: event.pointerType };
    show();
    add(event);
  }

  function up(event) {
    if (current?.pointer !== event.pointerId) return;
    const { points, pressures, row } = current;
    current = null;
    change({ ...now, strokes: [...now.strokes, { points, pressures, row }] });
  }

  function key(event) {
    const [control, name] = [event.ctrlKey || event.metaKey, event.key.toLowerCase()];
    const wanted =
      control && (name === "y" || (name === "z" && event.shiftKey)) ? redoButton
      : control && name === "z" ? undoButton
      : event.target === sheet && (name === "escape" || name === "delete") ? clearButton
      : event.target === sheet && name === "enter" ? lineButton : null;
    if (!wanted) return;
    event.preventDefault();
    event.stopPropagation();
    wanted.click();
  }

  el.addEventListener("keydown", key);
  model.on("change:strokes", load);
  const resized = new ResizeObserver(fit);
  resized.observe(sheet);
  load();
  show();

  return () => {
    if (timer) save();
    resized.disconnect();
    model.off("change:strokes", load);
  };
}

export default { render };
