// What was read: the picture with its boxes beside the text, each line to correct and keep, and what is done with them.
const [SURE, DOUBTFUL] = [0.9, 0.6]; // characters below are underlined: dotted, then wavy
const LINE = 72; // px of height at which a line is shown
const percent = (share) => `${Math.round(100 * share)} %`;

// Where IAM's way of writing, 'he said , " so " .', has spaces that nobody else writes; `open`: inside a quotation so far.
function superfluous(text, open) {
  const places = new Set();
  const add = (from, count) => Array.from({ length: count }, (_, k) => places.add(from + k));
  for (const { 0: found, index } of text.matchAll(/ +(?=[.,;:!?)])|\( +| *"/g)) {
    if (found.startsWith("(")) add(index + 1, found.length - 1);
    else if (!found.endsWith('"')) add(index, found.length);
    else if (!(open = !open)) add(index, found.length - 1);
    else add(index + found.length, text.slice(index + found.length).match(/^ */)[0].length);
  }
  return { places, open };
}

function save(parts, name) {
  const url = URL.createObjectURL(new Blob(parts));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

async function copy(text) {
  try {
    return await navigator.clipboard.writeText(text);
  } catch {
    // over plain HTTP there is no clipboard, and a frame may forbid it
  }
  const area = make("textarea", {}, text);
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// A text whose difference from another is bold.
function compared(text, other) {
  let [from, back] = [0, 0];
  while (from < text.length && text[from] === other[from]) from++;
  while (back < Math.min(text.length, other.length) - from && text.at(-1 - back) === other.at(-1 - back)) back++;
  return [text.slice(0, from), make("b", {}, text.slice(from, text.length - back)), text.slice(text.length - back)];
}

// Who comes back on this device gets the own kept lines again; the name is a secret of 128 bits.
function visitor() {
  const drawn = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  try {
    const name = localStorage.getItem("hwr-visitor") ?? drawn;
    localStorage.setItem("hwr-visitor", name);
    return name;
  } catch {
    return drawn; // storage is forbidden
  }
}

function render({ model, el }) {
  el.classList.add("hwr-reading");
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  let rows = []; // one a line: {text, said, field, keep, own, node}; own is what the user made of the text
  let number = -1; // of the reading that the rows show
  let selected = -1;
  const corrected = new Map(); // by the line's id: a line that is read again, as the pad's are, keeps its correction
  let [url, seen] = ["", null]; // of the picture that is shown

  const status = make("p", { role: "status", "aria-live": "polite", class: "hwr-status" });
  const error = make("p", { role: "alert", class: "hwr-error" });
  const progress = make("progress", { "aria-label": "Lines read" });
  const stop = button("Stop", () => send({ kind: "stop" }), { "aria-label": "Stop reading" });
  const image = make("img", { alt: "" });
  const boxes = make("svg", { "aria-hidden": "true" }); // each says nothing that its line doesn't
  const picture = make("div", { class: "hwr-picture" }, image, boxes);
  const list = make("div", { class: "hwr-lines" });
  const legend = make("p", { class: "hwr-small" }, "Orange, underlined characters are less sure. Tap a line to correct it; Enter keeps it.");
  const copied = button("Copy the text", async () => {
    await copy(text());
    copied.textContent = "Copied";
    setTimeout(() => (copied.textContent = "Copy the text"), 2000);
  });
  const spaces = make("input", { type: "checkbox", change: spell });
  const marks = make("input", { type: "checkbox", checked: true, change: () => (boxes.style.display = marks.checked ? "" : "none") });
  const keepAll = button("Keep all", () => keep(rows.map((_, k) => k)));
  const doing = make("div", { class: "hwr-bar" }, copied,
    button("Save as text", () => save([text(), "\n"], "handwriting.txt")), keepAll,
    make("label", {}, marks, " Boxes"), make("label", { title: "as the lines of IAM are written" }, spaces, " Spaces before punctuation"));
  const count = make("span", { class: "hwr-count", role: "status" });
  const undo = button("Undo the last", () => send({ kind: "undo" }), { "aria-label": "Undo the last Keep" });
  const zip = button("Download", () => send({ kind: "zip" }), { "aria-label": "Download the kept lines" });
  const teach = button("Teach it", () => send({ kind: "teach" }), { title: "trains the network on the kept lines (chapter 8)" });
  const taught = make("span", { role: "status", "aria-live": "polite", class: "hwr-small" });
  const lesson = make("progress", { "aria-label": "Teaching" });
  const stopTeaching = button("Stop teaching", () => send({ kind: "stop teaching" }));
  const keeping = make("div", { class: "hwr-bar" }, count, undo, zip, teach, lesson, stopTeaching, taught);
  el.append(make("div", { class: "hwr-bar" }, stop, progress, status), error,
    make("div", { class: "hwr-columns" }, picture, make("div", { class: "hwr-texts" }, list, legend, doing)), keeping);

  const send = (message) => ask(model, message, [], (late) => {
    if (!late) return show();
    [error.textContent, error.hidden] = [SILENT, false];
  });
  const read = (k) => model.get("lines")[k].text;
  const quoted = (k) => rows.slice(0, k).reduce((open, _, j) => superfluous(read(j), open).open, false);
  const closed = (text, k) => (spaces.checked ? new Set() : superfluous(text, quoted(k)).places);
  const tidy = (text, k) => ((gone) => [...text].filter((_, at) => !gone.has(at)).join(""))(closed(text, k));
  const value = (k) => rows[k].own ?? tidy(read(k), k);
  const text = () => rows.map((_, k) => value(k)).join("\n");

  function keep(chosen) {
    const open = chosen.filter((k) => !model.get("lines")[k].kept);
    if (open.length) send({ kind: "keep", number, lines: open.map((k) => [k, value(k).toWellFormed?.() ?? value(k)]) });
  }

  function select(k, focus) {
    selected = k;
    rows.forEach(({ node }, j) => node.classList.toggle("hwr-selected", j === k));
    point(k);
    if (focus) rows[k]?.field.focus();
  }

  function point(k) {
    [...boxes.children].forEach((box, j) => model.get("mode") === "page" && box.classList.toggle("hwr-pointed", j === k));
    rows.forEach(({ node }, j) => node.classList.toggle("hwr-pointed", j === k));
  }

  function makeRow(k) {
    const { id } = model.get("lines")[k];
    const row = { own: corrected.get(id) ?? null };
    const take = (own) => (corrected.set(id, own), (row.own = own), spell());
    const open = (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), select(k, true));
    row.text = make("p", { class: "hwr-text", tabindex: "0", role: "button", click: () => select(k), keydown: open });
    row.field = make("input", { type: "text", "aria-label": `Correct line ${k + 1}`, autocomplete: "off", spellcheck: "false",
      input: () => take(row.field.value),
      keydown: (event) => {
        if (event.key !== "Enter" || event.isComposing || event.repeat) return;
        event.preventDefault();
        keep([k]);
        if (k + 1 < rows.length) select(k + 1, true);
      } });
    row.keep = button("Keep", () => keep([k]), { "aria-label": `Keep line ${k + 1}` });
    row.said = make("span", { class: "hwr-small", role: "status" });
    row.others = make("div", { class: "hwr-bar" });
    row.others.append(...model.get("lines")[k].alternatives.map((other) => {
      const text = tidy(other, k);
      const one = button("", () => take(text), { class: "hwr-other", "aria-label": `Take: ${text}` });
      one.append(...compared(text, tidy(read(k), k)));
      return one;
    }));
    row.node = make("div", { class: "hwr-line", mouseenter: () => point(k), mouseleave: () => point(selected) }, row.text,
      make("div", { class: "hwr-edit" }, row.others, make("div", { class: "hwr-bar" }, row.field, row.keep)), row.said);
    return row;
  }

  function character([text, confidence]) {
    const kind = confidence >= SURE ? "" : confidence >= DOUBTFUL ? "hwr-dotted" : "hwr-wavy";
    const shade = `rgba(213, 94, 0, ${(0.6 * (1 - confidence)).toFixed(2)})`;
    const span = make("span", { class: kind, title: `${text === " " ? "space" : text}: ${percent(confidence)} sure` }, text);
    span.style.background = shade;
    return span;
  }

  // Write each line's text, as it was read or as the user has it.
  function spell() {
    rows.forEach((row, k) => {
      const line = model.get("lines")[k];
      const shown = value(k);
      const gone = closed(line.text, k);
      const spans = line.characters.filter((_, at) => !gone.has(at)).map(character);
      row.text.replaceChildren(...(row.own === null && spans.length ? spans : [shown || "(nothing was read)"]));
      row.text.setAttribute("aria-label", `Line ${k + 1}: ${shown}; ${percent(line.confidence)} sure`);
      if (row.field.value !== shown) row.field.value = shown;
      for (const part of [row.field, row.keep, ...row.others.children]) part.disabled = line.kept; // taken, it would not be kept
      row.said.textContent = line.said;
      row.node.classList.toggle("hwr-kept", line.kept);
    });
  }

  function showPicture() {
    const [width, height] = model.get("size");
    const bytes = model.get("picture");
    if (bytes === seen) return;
    seen = bytes;
    URL.revokeObjectURL(url);
    picture.hidden = !bytes?.byteLength;
    url = picture.hidden ? "" : URL.createObjectURL(new Blob([bytes]));
    if (url) image.src = url;
    else image.removeAttribute("src");
    image.alt = model.get("mode") === "page" ? "The page, its lines boxed" : "The line as the network sees it";
    boxes.setAttribute("viewBox", `0 0 ${width || 1} ${height || 1}`);
    const ratio = width / (height || 1);
    picture.style.maxWidth = model.get("mode") === "page" ? `min(100%, ${80 * ratio}vh)` : `${LINE * ratio}px`;
    el.dataset.mode = model.get("mode");
  }

  function showBoxes() {
    const [[, whole], lines] = [model.get("size"), model.get("lines")];
    const box = (attributes, title) => make("rect", attributes, make("title", {}, title));
    boxes.replaceChildren(...(model.get("mode") === "page"
      ? model.get("boxes").map(([x, y, width, height], k) =>
          box({ x, y, width, height, mouseenter: () => point(k), mouseleave: () => point(selected),
            click: () => rows[k] && (select(k), rows[k].node.scrollIntoView({ block: "nearest" })) }, lines[k] ? value(k) : "not read yet"))
      : (lines[0]?.characters ?? []).map(([text, confidence, x, end]) =>
          box({ x, y: 0, width: end - x, height: whole, style: `fill-opacity: ${0.6 * (1 - confidence)}` }, `${text}: ${percent(confidence)} sure`))));
  }

  function show() {
    const lines = model.get("lines");
    if (number !== model.get("number") || lines.length < rows.length) {
      rows = [];
      list.replaceChildren();
      selected = -1;
      number = model.get("number");
    }
    while (rows.length < lines.length) {
      rows.push(makeRow(rows.length));
      list.append(rows.at(-1).node);
    }
    spell();
    showBoxes();
    if (model.get("boxes").length === 1 && rows.length && selected < 0) select(0);
    else if (selected >= 0) point(selected);
    [status.textContent, error.textContent] = [model.get("status"), model.get("error")];
    error.hidden = !error.textContent;
    [progress.max, progress.value] = [Math.max(1, model.get("boxes").length), lines.length];
    progress.hidden = stop.hidden = !model.get("busy");
    legend.hidden = doing.hidden = !rows.length;
    keepAll.hidden = rows.length < 2;
    keepAll.disabled = lines.every(({ kept }) => kept);
    const kept = model.get("kept");
    count.textContent = `${kept === 1 ? "1 line" : `${kept} lines`} kept${model.get("place")}`;
    undo.disabled = !model.get("undoable");
    zip.disabled = !kept;
    const { running, done = 0, total = 1, says = "" } = model.get("teaching");
    teach.disabled = running || !kept;
    lesson.hidden = stopTeaching.hidden = !running;
    [lesson.max, lesson.value, taught.textContent] = [total, done, says];
    keeping.hidden = !kept && !rows.length && !says;
  }

  let due = false;
  function later() { // once for all traits that come together
    if (!due) queueMicrotask(() => ((due = false), showPicture(), show()));
    due = true;
  }

  const received = ({ kind, name }, buffers) => kind === "zip" && save(buffers, name);
  model.on("change", later);
  model.on("msg:custom", received);
  if (model.get("visitors")) send({ kind: "visitor", name: visitor() });
  later();

  return () => {
    URL.revokeObjectURL(url);
    model.off("change", later);
    model.off("msg:custom", received);
  };
}

export default { render };
