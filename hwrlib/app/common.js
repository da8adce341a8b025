// What the three front ends share; Python puts it before each of them.
const PATIENCE = 20_000; // ms after which a kernel that says nothing is called busy or ended

const SVG = ["svg", "g", "line", "rect", "title"];

// An element of HTML or SVG with its attributes, listeners (functions) and children; strings become text, never HTML.
function make(tag, attributes = {}, ...children) {
  const node = SVG.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const button = (label, click, attributes = {}) => make("button", { type: "button", click, ...attributes }, label);

// Whether an event belongs to the app around an element, not to the notebook around the app.
const inside = (el, event) => el.closest(".hwr-app")?.contains(event.target);

// Sends a message to Python; where no answer comes, `silent(true)` is called, and `silent(false)` when it comes late.
function ask(model, message, buffers = [], silent = () => {}) {
  let late = false;
  const timer = setTimeout(() => silent((late = true)), PATIENCE);
  const heard = () => (clearTimeout(timer), model.off("msg:custom", heard), late && silent(false));
  model.on("msg:custom", heard);
  model.send(message, undefined, buffers);
}

const SILENT = "No answer: the kernel is busy or has ended. Wait a little, then run the cell again or reload the page.";
