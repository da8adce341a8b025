// Choosing, dropping, pasting and taking a picture; it is shrunk before it travels, and turned or read anew on demand.
const LONGEST = 2600; // px on the long side: a page's letters are still 30 px high
const AS_IT_IS = 2e6; // bytes of a file that travels unchanged
const MOST = 8e6; // bytes of a file that the browser cannot open, but perhaps Python; a server takes no message over 10
const MOST_PIXELS = 100e6;

const decoded = (url) =>
  new Promise((done, fail) => {
    const image = Object.assign(new Image(), { onload: () => done(image), onerror: fail, src: url });
  });

// The bytes of a picture that is small enough to travel, turned as its EXIF orientation says.
async function shrunk(file) {
  const url = URL.createObjectURL(file);
  try {
    const image = await decoded(url).catch(() => null);
    if (!image && file.size > MOST) {
      throw new Error("this browser cannot open it; save it as JPEG or PNG (iPhone: Settings > Camera > Formats > Most Compatible)");
    }
    const { naturalWidth: width, naturalHeight: height } = image ?? { naturalWidth: 0, naturalHeight: 0 };
    if (width * height > MOST_PIXELS) {
      throw new Error(`it has ${Math.round((width * height) / 1e6)} megapixels; scale it down to 100 or less`);
    }
    const scale = LONGEST / Math.max(width, height);
    if (!image || (scale >= 1 && file.size <= AS_IT_IS)) return await file.arrayBuffer(); // Python says what it is
    const canvas = make("canvas");
    canvas.width = Math.max(1, Math.round(width * Math.min(1, scale)));
    canvas.height = Math.max(1, Math.round(height * Math.min(1, scale)));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high"; // the default may leave out pixels, and thin strokes with them
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    if (!blob) throw new Error("this device has too little memory for it; scale it down");
    return await blob.arrayBuffer();
  } finally {
    URL.revokeObjectURL(url);
  }
}

function render({ model, el }) {
  el.classList.add("hwr-pictures");
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  const problem = make("p", { class: "hwr-error", role: "alert", hidden: true });
  const say = (text) => ((problem.textContent = text), (problem.hidden = !text)); // what Python cannot say itself
  let latest = 0; // of what was asked for: a large picture may be ready only after one that was given later
  const send = (message, buffers) => (latest++, say(""), ask(model, message, buffers, (late) => say(late ? SILENT : "")));

  async function take(file) {
    if (!file) return;
    const given = file.name || "the picture";
    const name = given.toWellFormed?.() ?? given;
    const mine = ++latest;
    let [message, buffers] = [{ kind: "picture", name }, []];
    try {
      buffers = [await shrunk(file)];
    } catch (error) {
      message = { kind: "refused", name, why: error.message };
    }
    if (mine === latest) send(message, buffers);
  }

  // A button that opens the dialog of a hidden file input; `capture` makes a phone open its camera.
  function chooser(label, attributes) {
    const input = make("input", { type: "file", accept: "image/*", hidden: true, "aria-label": label, ...attributes });
    input.addEventListener("change", () => (take(input.files[0]), (input.value = ""))); // the same file can come again
    return [button(label, () => input.click(), "capture" in attributes ? { class: "hwr-camera" } : {}), input];
  }

  const kinds = [["", "automatic"], ["line", "one line"], ["page", "a page"]];
  const as = make("select", { change: () => send({ kind: "again", as: as.value }) });
  as.append(...kinds.map(([value, text]) => make("option", { value }, text)));
  const afterwards = make("span", { class: "hwr-bar", hidden: true },
    button("Rotate", () => send({ kind: "again", as: as.value, turn: 1 }), { "aria-label": "Rotate the picture by a quarter turn" }),
    make("label", {}, "Read as ", as),
    button("Back to the pad", () => send({ kind: "pad" })));
  el.append(
    make("div", { class: "hwr-bar" },
      ...chooser("Choose a picture", {}),
      ...chooser("Take a photo", { capture: "environment" }),
      button("Sample line", () => send({ kind: "sample", of: "line" })),
      button("Sample page", () => send({ kind: "sample", of: "page" })),
      make("span", { class: "hwr-small hwr-hint" }, "or drop or paste one here"),
      afterwards),
    problem);

  function show() {
    afterwards.hidden = !model.get("shown");
    as.value = model.get("kind");
  }

  function drop(event) {
    if (!inside(el, event) || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    if (event.type === "drop") take(event.dataTransfer.files[0]);
  }

  function paste(event) {
    const file = [...(event.clipboardData?.files ?? [])][0];
    const typing = event.target.type === "text" && event.clipboardData?.types.includes("text/plain"); // Office adds a picture
    if (!file || typing || !(inside(el, event) || event.target === document.body)) return;
    event.preventDefault();
    take(file);
  }

  const listeners = { dragover: drop, drop, paste };
  for (const [name, listener] of Object.entries(listeners)) document.addEventListener(name, listener);
  model.on("change:shown change:kind", show);
  show();

  return () => {
    for (const [name, listener] of Object.entries(listeners)) document.removeEventListener(name, listener);
    model.off("change:shown change:kind", show);
  };
}

export default { render };
