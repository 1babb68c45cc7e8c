// The token in focus: what happened there, its numbers, and the three distributions side by side.
kad.panel = (reading, index, {href = null, choose = null} = {}) => {
  const {trace} = reading;
  const [position, decision] = [reading.positions[index], reading.decisions[index]];
  const place = `${index + 1} of ${reading.length}`;
  const heading = kad.make("h2", {}, kad.make("q", {}, kad.word(trace, position.token)),
    kad.make("small", {}, href ? kad.make("a", {href, title: "A link to this token"}, place) : place, ` · id ${position.token}`));
  const parts = [heading, kad.make("p", {class: "story"}, kad.story(reading, index))];
  if (decision.known) parts.push(kad.panelFacts(position, decision), ...kad.distributions(trace, position, decision, choose));
  return parts;
};

kad.story = (reading, index) => {
  const {trace, rule} = reading;
  const [position, decision] = [reading.positions[index], reading.decisions[index]];
  if (!decision.known) return "Undecided: the recorded head of p does not reach down to this rule's threshold.";
  const unread = position.p === 0 && position.nobody >= 0.0005;
  const fate = kad.isAlone(trace) ? "The base model alone, in its own tokens. The aligned model has other tokens, so the two are not compared here."
    : decision.share === null ? "A product of the models: no part of it comes from one of them alone."
    : position.p > 0 && decision.share > 0 ? `Kept: ${kad.percent(decision.share)} of its probability comes from the base model.`
      : unread ? "Deferred: the base model was not followed to this token, it comes from the aligned one."
        : "Deferred: the base model gives this token up, it comes from the aligned one.";
  if (rule) return fate;
  const [draft, ...after] = kad.drafts(position).map((token) => `“${kad.word(trace, token)}”`);
  const dropped = after.length ? ` What was drafted after it, ${after.join(" ")}, fell with it.` : "";
  const events = {
    accepted: "The draft from q* was accepted.",
    corrected: `${["The draft", draft].filter(Boolean).join(" ")} was rejected, and this token drawn instead.${dropped}`,
    bonus: "Bonus token: every draft of the window was accepted.",
    deferred: "Deferred at the bonus position: by definition a draw from q*, accepted unverified.",
  };
  const chosen = trace.generation.chosen?.includes(index) ? "You chose this token." : "";
  const shares = Object.entries(position.leaves ?? {}).map(([path, share]) => `${path} ${kad.percent(share)}`);
  const leaves = shares.length ? `Its models: ${shares.join(", ")}.` : "";
  return [fate, leaves, events[position.event] ?? "", chosen].filter(Boolean).join(" ");
};

kad.panelFacts = (position, decision) => {
  const {tau} = decision;
  const threshold = tau === null || tau === undefined ? "–" : tau > 1 ? "none kept" : tau <= 0 ? "all kept" : kad.number(tau);
  const compared = [["deferred α", kad.number(decision.alpha), "alpha"], ["threshold τ", threshold, "tau"],
    ["from base", decision.share === null ? "–" : kad.percent(decision.share), "share"],
    ["acceptance β", kad.number(decision.acceptance), "beta"]];
  const rows = position.p_aligned === null ? [] : compared;
  for (const [key, measure] of Object.entries(kad.measures)) {
    const value = measure.sign ? measure.value(position, decision) : null;
    if (value !== null) rows.push([measure.sign, key === "rank" ? `${value}` : kad.number(value), key]);
  }
  return kad.facts(rows);
};

kad.distributions = (trace, position, decision, choose) => {
  const [models, nobody] = [kad.isAlone(trace) ? 1 : 3, position.nobody >= 0.0005 ? position.nobody : 0];
  const largestOf = (row) => Math.max(row.pi, row.p, row.q);
  const rows = decision.rows.filter((row) => largestOf(row) >= 0.0005).sort((a, b) => largestOf(b) - largestOf(a)).slice(0, 12);
  if (!rows.some((row) => row.token === position.token)) {
    const own = {token: position.token, p: position.p, q: position.p_aligned, pi: decision.pi};
    rows.push({...own, kept: decision.share === null ? null : decision.share * decision.pi});
  }
  const largest = Math.max(...rows.map(largestOf));
  const scale = [0.1, 0.25, 0.5].find((limit) => largest <= limit) ?? 1;

  const bar = (parts) => {
    const cell = kad.make("span", {class: "bar"});
    for (const [kind, mass] of parts) if (mass >= 0.0005) cell.append(kad.make("i", {class: kind, style: `width:${Math.min(100, 100 * mass / scale)}%`}));
    return cell;
  };
  const cellOf = (mass, parts, text = kad.probability(mass)) => kad.make("span", {class: "cell"}, bar(parts), kad.make("b", {}, text));
  const nameOf = (row) => {
    const [name, said] = [kad.word(trace, row.token), kad.spoken(trace.vocabulary[row.token] ?? `#${row.token}`)];
    if (row.token === position.token) return [kad.make("span", {class: "here", "aria-label": "emitted: "}, "▸"), name];
    if (!choose) return [name];
    return [kad.make("button", {type: "button", class: "choose", title: "What if it had been this token?", "aria-label": `What if “${said}”?`, click: () => choose(row)}, name)];
  };
  const line = (row) => {
    // k p of a partly kept token splits its bar under p as well.
    const keptOfP = row.kept === null ? row.p : Math.min(row.kept, row.p);
    const piParts = row.kept === null ? [["pi", row.pi]] : [["base", row.kept], ["moved", Math.max(0, row.pi - row.kept)]];
    const cells = [[row.p, [["base", keptOfP], ["deferred", row.p - keptOfP]], kad.bounded(row.p, nobody)], [row.q, [["aligned", row.q]]], [row.pi, piParts]].slice(0, models);
    return kad.make("tr", row.token === position.token ? {class: "chosen"} : {}, kad.make("th", {scope: "row"}, ...nameOf(row)),
      ...cells.map(([mass, ...shown]) => kad.make("td", {"data-value": mass}, cellOf(mass, ...shown))));
  };

  const heads = [["p", "base"], ["q*", "aligned"], ["π", "composed"]].slice(0, models).map(([sign, name]) => kad.make("th", {scope: "col"}, kad.make("var", {}, sign), ` ${name}`));
  const rest = ["p", "q", "pi"].slice(0, models).map((key) => Math.max(0, 1 - (key === "p" ? nobody : 0) - rows.reduce((sum, row) => sum + row[key], 0)));
  const last = (name, masses) => kad.make("tr", {class: "rest"}, kad.make("th", {scope: "row"}, name), ...masses.map((mass) => kad.make("td", {}, mass === null ? "" : cellOf(mass, [["others", mass]]))));
  const table = kad.make("table", {class: nobody ? "bounded" : null}, kad.make("caption", {}, `Next-token probabilities; a full bar is ${scale}`),
    kad.make("thead", {}, kad.make("tr", {}, kad.make("td"), ...heads)),
    kad.make("tbody", {}, ...rows.map(line), last("all others", rest), ...(nobody ? [last("no token", [nobody, null, null])] : [])));
  if (!nobody) return [table];
  return [table, kad.make("p", {class: "note"}, `${kad.probability(nobody)} of p belongs to no token here: p begins to end its answer, may not end it, was not followed to a token of q*, or is on a server that names its most probable tokens alone. p of a token can be larger, by at most that.`)];
};

// The panel's place: beside the text, and on a narrow screen a sheet at the bottom, folded until a token is held.
kad.panelPlace = (aside) => {
  const narrow = matchMedia("(max-width: 56rem)");
  const fold = kad.make("button", {type: "button", class: "fold", "aria-controls": "panel"});
  const panel = kad.make("section", {id: "panel", "aria-label": "The token in focus"});
  const apply = (open) => {
    fold.setAttribute("aria-expanded", String(open));
    fold.textContent = open ? "▾ Fold the panel" : "▴ Unfold the panel";
    document.body.classList.toggle("folded", !open);
  };
  fold.addEventListener("click", () => apply(fold.getAttribute("aria-expanded") !== "true"));
  apply(!narrow.matches);
  aside.append(fold, panel);
  const show = (parts, held) => {
    panel.replaceChildren(...parts);
    if (held && narrow.matches) apply(true);
  };
  return {show};
};
