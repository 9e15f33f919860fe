"use strict";
const page = JSON.parse(document.getElementById("content").textContent);
const at = (id) => document.getElementById(id);

/** An element; children that are strings become text, null is left out. */
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}
function row(kind, cells, attributes) {
  return make("tr", attributes, cells.map((cell, i) => make(kind === "th" || i === 0 ? "th" : "td",
    {scope: kind === "th" ? "col" : i === 0 ? "row" : null, class: cell.class ?? null}, cell.content ?? cell)));
}
const figure = (...content) => ({class: "figure", content});
const count = (number) => number.toLocaleString("en");
const rate = (value, digits = 4) => (value === null ? "none" : value.toFixed(digits).replace("-", "−"));
const interval = ([low, high]) => `[${rate(low, 3)}, ${rate(high, 3)}]`;
function time(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${Math.floor(seconds % 60)} s`;
}
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
function drawn(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
