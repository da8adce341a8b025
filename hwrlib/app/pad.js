// A pad for one line of handwriting. Its strokes are those of hwrlib.strokes.render_strokes: one flat list
// [x0, y0, x1, y1, ...] for each time the pen was down, in pixels, y downwards. SVG stays sharp on every screen.
const HEIGHT = 180;
const BASELINE = 120;
const PAUSE = 400; // ms without a pen on the pad after which the strokes go to Python

const MARKUP = `
  <svg tabindex="0" role="application" aria-keyshortcuts="Control+Z Escape Delete" height="${HEIGHT}"
    aria-label="Drawing pad: write one line with mouse, pen or finger. Control+Z takes a stroke back, Escape clears.">
    <line class="hwr-baseline" x1="0" x2="100%" y1="${BASELINE}" y2="${BASELINE}" />
    <g></g>
  </svg>
  <div class="hwr-bar">
    <button type="button" aria-label="Undo the last stroke">Undo</button>
    <button type="button" aria-label="Clear the pad">Clear</button>
    <span role="status" aria-live="polite"></span>
  </div>`;

function render({ model, el }) {
  el.classList.add("hwr-pad");
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab leaves our keys to us
  el.innerHTML = MARKUP;
  const sheet = el.querySelector("svg");
  const ink = el.querySelector("g");
  const status = el.querySelector("span");
  const [undoButton, clearButton] = el.querySelectorAll("button");
  let strokes = []; // {points, pressures, line}
  let current = null;
  let penSeen = false;
  let timer = 0;

  const lists = () => strokes.map((stroke) => stroke.points);

  function begin(points = []) {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const stroke = { points, pressures: [], line };
    ink.append(line);
    strokes.push(stroke);
    return stroke;
  }

  function draw({ points, pressures, line }) {
    const mean = pressures.length ? pressures.reduce((a, b) => a + b) / pressures.length : 0.5; // a mouse has 0.5
    line.setAttribute("stroke-width", (1.5 + 3 * mean).toFixed(2));
    line.setAttribute("points", (points.length === 2 ? [...points, ...points] : points).join(" ")); // a dot
  }

  function show() {
    const count = strokes.length;
    status.textContent = count === 0 ? "Nothing written yet" : count === 1 ? "1 stroke" : `${count} strokes`;
    undoButton.disabled = clearButton.disabled = count === 0;
    fit();
  }

  function fit() {
    const width = sheet.clientWidth;
    if (!width) return; // not on the screen yet
    const right = Math.max(0, ...lists().flat().filter((_, k) => k % 2 === 0));
    const needed = Math.max(width, right + 10); // a narrower window shows the writing smaller
    sheet.setAttribute("viewBox", `0 0 ${needed} ${(HEIGHT * needed) / width}`);
  }

  function save() {
    clearTimeout(timer);
    timer = 0;
    model.set("strokes", lists().map((points) => [...points]));
    model.save_changes();
  }

  function load() {
    const wanted = model.get("strokes");
    if (JSON.stringify(wanted) === JSON.stringify(lists())) return;
    strokes = [];
    ink.replaceChildren();
    wanted.forEach((points) => draw(begin([...points])));
    show();
  }

  function add(event) {
    const moves = event.getCoalescedEvents?.() ?? [];
    const toSheet = sheet.getScreenCTM().inverse();
    for (const { clientX, clientY, pressure } of moves.length ? moves : [event]) {
      const { x, y } = new DOMPoint(clientX, clientY).matrixTransform(toSheet);
      current.points.push(Math.round(x * 10) / 10, Math.round(y * 10) / 10);
      if (pressure) current.pressures.push(pressure);
    }
    draw(current);
  }

  function down(event) {
    penSeen ||= event.pointerType === "pen";
    const palm = penSeen && event.pointerType === "touch";
    if (current || event.button !== 0 || palm) return;
    event.preventDefault();
    clearTimeout(timer);
    sheet.focus({ preventScroll: true });
    sheet.setPointerCapture(event.pointerId);
    current = begin();
    current.pointer = event.pointerId;
    add(event);
  }

  function move(event) {
    if (current?.pointer === event.pointerId) add(event);
  }

  function up(event) {
    if (current?.pointer !== event.pointerId) return;
    current = null;
    show();
    timer = setTimeout(save, PAUSE);
  }

  function undo() {
    if (current || !strokes.length) return;
    strokes.pop().line.remove();
    show();
    save();
  }

  function clear() {
    if (current || !strokes.length) return;
    strokes = [];
    ink.replaceChildren();
    show();
    save();
  }

  function key(event) {
    const wanted = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" ? undo
      : event.key === "Escape" || event.key === "Delete" ? clear : null;
    if (!wanted) return;
    event.preventDefault();
    event.stopPropagation();
    wanted();
  }

  sheet.addEventListener("pointerdown", down);
  sheet.addEventListener("pointermove", move);
  sheet.addEventListener("pointerup", up);
  sheet.addEventListener("pointercancel", up);
  undoButton.addEventListener("click", undo);
  clearButton.addEventListener("click", clear);
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
