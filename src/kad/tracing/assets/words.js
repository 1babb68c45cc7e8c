"use strict";
// What everything else is written with: nodes, numbers, and tokens as labels. Text becomes text nodes, never markup.
// A class, because the check of the scripts lets an object have any name.
class kad {}

// A node. An attribute that is a function listens, null and false leave the attribute out, true sets it.
kad.make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
};

kad.svg = (tag, attributes = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};

kad.facts = (rows) => kad.make("dl", {}, ...rows.map(([term, text, name]) =>
  kad.make("div", {}, kad.make("dt", {}, term), kad.make("dd", name ? {"data-name": name} : {}, text))));

kad.percent = (x) => `${x > 0.0005 && x < 0.0995 ? (100 * x).toFixed(1) : (100 * x).toFixed(0)} %`;
kad.probability = (x) => (x >= 0.9995 ? "1" : x >= 0.0005 ? x.toFixed(3).slice(1) : x > 0 ? "<.001" : "0");
// A probability of p, where a part of p belongs to no token: p(v) is larger by at most that part.
kad.bounded = (p, nobody) => (!(nobody >= 0.0005) ? kad.probability(p) : p >= 0.0005 ? `≥${kad.probability(p)}` : `≤${kad.probability(Math.min(1, p + nobody))}`);
kad.number = (x) => (x === null || x === undefined ? "–" : x === Infinity ? "∞" : x.toFixed(3));

// Blank characters made visible, for labels; the text itself keeps its own.
kad.label = (text) => {
  const glyphs = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"};
  return text === "" ? "∅" : text.replace(/[\n\t\r]|^ | $/g, (c) => glyphs[c]);
};
// The same for a reader of the screen.
kad.spoken = (text) => {
  const names = {" ": "space", "\n": "line break", "\t": "tab", "\r": "carriage return"};
  return text === "" ? "nothing" : text.replace(/[\n\t\r]|^ | $/g, (c) => ` ${names[c]} `).trim();
};
// The drafts that fell before a token: the rejected one, and those behind it.
kad.drafts = ({rejected_draft: first, dropped_drafts: more}) => (first === null || first === undefined ? [] : [first, ...(more ?? [])]);
kad.word = (trace, token) => kad.label(trace.vocabulary[token] ?? `#${token}`);

// Whether a text is the base model's alone, in tokens that the aligned model does not have. It has no p_aligned.
kad.isAlone = ({models}) => !("aligned" in models);

// Whose end token it was, as Trace.ended_by has it.
kad.endedBy = ({generation, positions}) => {
  const share = positions.at(-1)?.base_share ?? null;
  return generation.finish_reason !== "stop" || share === null ? null : share > 0.5 ? "base" : "aligned";
};

// A rule for people: "dual 0.40" is dual:threshold=0.4.
kad.parameter = (value) => (Number(value.toFixed(2)) === value ? value.toFixed(2) : String(value));
kad.ruleWords = (text) => text.replace(/^(\w+):\w+=(-?[\d.]+)$/, (_, name, value) => `${name} ${kad.parameter(Number(value))}`);
// A rule as kad.rules.parse_rule reads it.
kad.ruleText = (trace, rule, value) => (rule ? `${rule}:${kad.rules[rule].parameter}=${value}` : trace.rule_text);

// Counts and means over the positions so far, as Trace.summary has them.
kad.summary = ({positions}) => {
  const mean = (name) => {
    const present = positions.map((position) => position[name]).filter((x) => x !== null && x !== undefined);
    return present.length ? present.reduce((sum, x) => sum + x, 0) / present.length : null;
  };
  const count = (event) => positions.filter((position) => position.event === event).length;
  return {tokens: positions.length, mean_deferred_mass: mean("deferred_mass"), mean_acceptance: mean("acceptance"), mean_base_share: mean("base_share"),
    accepted: count("accepted"), corrected: count("corrected"), bonus: count("bonus"), deferred: count("deferred")};
};

// Light, dark, or as the system is: the page always says which of the two is in force.
kad.theme = (button) => {
  const [names, signs] = [["auto", "light", "dark"], {auto: "◐", light: "☀", dark: "☾"}];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let theme = "auto";
  const apply = () => {
    document.documentElement.dataset.theme = theme !== "auto" ? theme : dark.matches ? "dark" : "light";
    button.textContent = signs[theme];
    button.title = `Color theme: ${theme === "auto" ? "as the system" : theme}`;
    button.setAttribute("aria-label", button.title);
  };
  button.addEventListener("click", () => { theme = names[(names.indexOf(theme) + 1) % names.length]; apply(); });
  dark.addEventListener("change", apply);
  apply();
};
