// Text from models and data sets: always as text nodes, never as markup.
"use strict";

// Control characters, marks that turn the direction of what follows, what takes no room, halves of surrogate pairs:
// written out, as report/texts.py does.
const HIDDEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/gu;

function visible(text) {
  return String(text).replace(HIDDEN, (character) => {
    const code = character.charCodeAt(0);
    return code < 0x100 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
  });
}

// A token stands in the middle of a line: what would break the line is shown, too.
function tokenText(token) {
  return visible(token).replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

// An element with attributes (false and null: left out) and children: elements, or text.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    element.append(child instanceof Node ? child : document.createTextNode(visible(child)));
  }
  return element;
}

function figures4(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function percent(value) {
  return value === null || value === undefined ? "–" : figures4(Number((100 * value).toPrecision(3))) + " %";
}

function jsonOf(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

function once(compute) {
  let known = null;
  return () => (known ??= { value: compute() }).value;
}
