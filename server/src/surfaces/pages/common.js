"use strict";
// What both pages do: find their server and make elements.

const byId = (id) => document.getElementById(id);
const facts = JSON.parse(document.querySelector('meta[name="facts"]').content);
// The page knows its own path, so it works behind a proxy that serves all below another.
const trimmed = (path) => path.replace(/\/$/, "");
const root = location.origin + trimmed(location.pathname).slice(0, -trimmed(facts.own).length || undefined);
const place = (path) => root + path;
const KEY = "stator-api-key";

/// Makes an element with properties and children.
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}
