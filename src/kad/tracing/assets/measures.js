// What the tokens can be colored by. Each measure: its name, its value at a token (null: not recorded), how it is said,
// and how strong its color is, on a fixed scale, so that traces can be compared. Origin has the two colors of its own.
kad.measures = (() => {
  const nats = (full) => ({say: (x) => `${kad.number(x)} nats`, level: (x) => x / full, ends: ["0", `${full} nats`]});
  // A trace of kad 0.1 has no entropy. Where a part of p belongs to no token, neither of the two is known.
  const entropy = (position) => (position.nobody >= 0.0005 ? null : position.entropy ?? null);
  // Where the entropy is there and the divergence is not, that is infinite.
  const divergence = (position) => (entropy(position) === null || position.p_aligned === null ? null : position.divergence ?? Infinity);
  return {
    origin: {name: "origin", value: (position, decision) => decision.share},
    surprisal: {name: "surprisal of π", sign: "−log π", ...nats(5),
      value: (position, decision) => (decision.pi > 0 ? -Math.log(decision.pi) : Infinity)},
    entropy: {name: "entropy of p", sign: "H(p)", ...nats(4), value: entropy},
    divergence: {name: "KL(p ‖ q*)", sign: "KL(p ‖ q*)", ...nats(8), value: divergence},
    rank: {name: "rank in p", sign: "rank in p", say: (x) => `${x}`, level: (x) => Math.log10(x) / 3, ends: ["1", "1000 or more"],
      value: (position) => position.rank ?? null},
  };
})();

// A choice of the measure, and the legend that belongs to it.
kad.measureChoice = (changed) => {
  const select = kad.make("select", {class: "measure", change: () => changed(select.value)});
  for (const [key, measure] of Object.entries(kad.measures)) select.append(kad.make("option", {value: key}, measure.name));
  return kad.make("label", {}, kad.make("span", {class: "by"}, "Color by "), select);
};

kad.legend = (measure, {origins, drafts}) => {
  const key = (kind, ...text) => kad.make("span", {class: "key"}, kad.make("i", {class: kind}), ...text);
  const legend = kad.make("div", {class: "legend", "aria-hidden": "true"});
  const {ends} = kad.measures[measure];
  if (ends) legend.append(kad.make("span", {class: "key"}, ends[0]), kad.make("span", {class: "ramp heat"}), kad.make("span", {class: "key"}, ends[1]));
  else if (origins) {
    legend.append(key("swatch base", "base ", kad.make("var", {}, "p")), kad.make("span", {class: "ramp"}), key("swatch aligned", "aligned ", kad.make("var", {}, "q*")));
  }
  if (drafts) legend.append(key("mark corrected", "corrected"), key("mark bonus", "bonus"));
  const changed = key("mark differs", "greedy picks another");
  changed.classList.add("changed");
  legend.append(changed);
  return legend;
};
