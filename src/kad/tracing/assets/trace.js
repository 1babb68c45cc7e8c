(() => {
  const trace = JSON.parse(document.getElementById("trace").textContent);
  const {positions} = trace;
  const $ = (id) => document.getElementById(id);
  const state = {at: 0, rule: null, value: null, decisions: [], tokens: []};

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const percent = (x) => `${x > 0.0005 && x < 0.0995 ? (100 * x).toFixed(1) : (100 * x).toFixed(0)} %`;
  const probability = (x) => (x >= 0.9995 ? "1" : x >= 0.0005 ? x.toFixed(3).slice(1) : x > 0 ? "<.001" : "0");
  const number = (x) => (x === null || x === undefined ? "–" : x.toFixed(3));
  // Blank characters made visible, for labels; the text itself keeps its own.
  const glyphs = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"};
  const label = (text) => (text === "" ? "∅" : text.replace(/[\n\t\r]|^ | $/g, (c) => glyphs[c]));
  const word = (token) => label(trace.vocabulary[token] ?? `#${token}`);

  // ---------------------------------------------------------------- header

  const facts = () => {
    const {summary, generation, models} = trace;
    const how = {given: "given text", generated: generation.do_sample ? "sampled" : "greedy"}[generation.source] ?? generation.source;
    const rows = [["rule", trace.rule_text], ...Object.entries(models), ["answer", `${summary.tokens} tokens, ${how}`]];
    if (summary.mean_base_share !== null) rows.push(["from base", percent(summary.mean_base_share)]);
    if (summary.mean_deferred_mass !== null) rows.push(["mean α", number(summary.mean_deferred_mass)]);
    rows.push(["mean β", number(summary.mean_acceptance)]);
    const drafted = summary.accepted + summary.corrected;
    if (drafted) rows.push(["drafts accepted", `${summary.accepted} of ${drafted}`]);
    for (const [term, text] of rows) $("facts").append(make("div", {}, make("dt", {}, term), make("dd", {}, text)));
    $("prompt").querySelector("summary").textContent = "Prompt";
    $("prompt").querySelector("p").textContent = trace.prompt;
    document.querySelector("footer").textContent = `kad ${trace.kad_version} · ${trace.schema}`;
    document.querySelectorAll(".speculation").forEach((key) => { key.hidden = !drafted; });
  };

  // ---------------------------------------------------------------- text

  const writeText = () => {
    const words = document.createDocumentFragment();
    positions.forEach((position, index) => {
      const token = make("span", {class: "token", role: "option", tabindex: "-1", "aria-selected": "false"});
      const text = position.text;
      if (text.trim() === "" && text !== " ") token.classList.add("blank");
      // A line break is shown, and then made; what has no width (unfinished characters, marks) keeps a place to point at.
      token.textContent = /^[\p{C}\p{Z}]*$/u.test(text) && !/[ \n\t]/.test(text) ? "·" : text.replace(/\n/g, "⏎\n");
      if (position.event) token.classList.add(position.event);
      token.dataset.index = index;
      state.tokens.push(token);
      words.append(token);
    });
    $("text").append(words);
  };

  const recolor = () => {
    state.decisions = positions.map((position) =>
      state.rule ? kad.decide(position, state.rule, state.value) : kad.recorded(position, trace.family));
    state.tokens.forEach((token, index) => {
      const decision = state.decisions[index];
      const known = decision.known && decision.share !== null;
      token.classList.toggle("unknown", !known);
      token.classList.toggle("differs", Boolean(state.rule) && known && kad.best(decision) !== positions[index].token);
      token.style.setProperty("--share", known ? decision.share : 0);
      token.dataset.share = known ? decision.share.toFixed(4) : "";
    });
    verdict();
    drawTimeline();
    show(state.at, false);
  };

  // ---------------------------------------------------------------- panel

  const bar = (parts, scale) => {
    const cell = make("span", {class: "bar"});
    for (const [kind, mass] of parts) if (mass >= 0.0005) cell.append(make("i", {class: kind, style: `width:${Math.min(100, 100 * mass / scale)}%`}));
    return cell;
  };

  const distributionRow = (row, position, alpha, scale) => {
    const chosen = row.token === position.token;
    const line = make("tr", chosen ? {class: "chosen"} : {});
    const deferredPart = row.kept === null ? 0 : Math.max(0, row.pi - row.kept);
    // k p of a partly kept token splits its bar under p as well.
    const keptOfP = row.kept === null ? row.p : Math.min(row.kept, row.p);
    const piParts = row.kept === null ? [["pi", row.pi]] : [["base", row.kept], ["moved", deferredPart]];
    const cells = [[row.p, [["base", keptOfP], ["deferred", row.p - keptOfP]]], [row.q, [["aligned", row.q]]], [row.pi, piParts]];
    const name = make("th", {scope: "row"}, word(row.token));
    if (chosen) name.prepend(make("span", {class: "here", "aria-label": "emitted: "}, "▸"));
    line.append(name);
    for (const [mass, parts] of cells) line.append(make("td", {"data-value": mass}, make("span", {class: "cell"}, bar(parts, scale), make("b", {}, probability(mass)))));
    return line;
  };

  const distributions = (position, decision) => {
    const largestOf = (row) => Math.max(row.pi, row.p, row.q);
    const rows = decision.rows.filter((row) => largestOf(row) >= 0.0005).sort((a, b) => largestOf(b) - largestOf(a)).slice(0, 12);
    if (!rows.some((row) => row.token === position.token)) {
      const own = {token: position.token, p: position.p, q: position.p_aligned, pi: decision.pi};
      rows.push({...own, kept: decision.share === null ? null : decision.share * decision.pi});
    }
    const largest = Math.max(...rows.map((row) => Math.max(row.p, row.q, row.pi)));
    const scale = [0.1, 0.25, 0.5].find((limit) => largest <= limit) ?? 1;
    const table = make("table", {}, make("caption", {}, `Next-token probabilities; a full bar is ${scale}`));
    table.append(make("thead", {}, make("tr", {}, make("td"), ...[["p", "base"], ["q*", "aligned"], ["π", "composed"]].map(([sign, name]) => make("th", {scope: "col"}, make("var", {}, sign), ` ${name}`)))));
    const body = make("tbody", {});
    rows.forEach((row) => body.append(distributionRow(row, position, decision.alpha, scale)));
    const rest = ["p", "q", "pi"].map((key) => Math.max(0, 1 - rows.reduce((sum, row) => sum + row[key], 0)));
    body.append(make("tr", {class: "rest"}, make("th", {scope: "row"}, "all others"), ...rest.map((mass) => make("td", {}, make("span", {class: "cell"}, bar([["others", mass]], scale), make("b", {}, probability(mass)))))));
    table.append(body);
    return table;
  };

  const events = {
    accepted: "The draft from q* was accepted.",
    bonus: "Bonus token: every draft of the window was accepted.",
    deferred: "Deferred at the bonus position: by definition a draw from q*, accepted unverified.",
  };

  const story = (position, decision) => {
    if (!decision.known) return "Undecided: the recorded head of p does not reach down to this rule's threshold.";
    if (decision.share === null) return "A product of the models: no part of it comes from one of them alone.";
    const fate = position.p > 0 && decision.share > 0
      ? `Kept: ${percent(decision.share)} of its probability comes from the base model.`
      : "Deferred: the base model gives this token up, it comes from the aligned one.";
    const draft = position.event === "corrected"
      ? `The draft ${position.rejected_draft === null ? "" : `“${word(position.rejected_draft)}” `}was rejected, and this token drawn instead.`
      : events[position.event] ?? "";
    return state.rule ? fate : `${fate} ${draft}`;
  };

  const panelFacts = (decision) => {
    const threshold = decision.tau === null || decision.tau === undefined ? "–" : decision.tau > 1 ? "none kept" : decision.tau <= 0 ? "all kept" : number(decision.tau);
    const rows = [["deferred α", number(decision.alpha), "alpha"], ["threshold τ", threshold, "tau"], ["from base", decision.share === null ? "–" : percent(decision.share), "share"]];
    if (!state.rule) rows.push(["acceptance β", number(decision.acceptance), "beta"]);
    return make("dl", {}, ...rows.map(([term, text, name]) => make("div", {}, make("dt", {}, term), make("dd", {"data-name": name}, text))));
  };

  const show = (index, scroll = true) => {
    state.tokens[state.at].setAttribute("aria-selected", "false");
    state.tokens[state.at].tabIndex = -1;
    state.at = index;
    const [token, position, decision] = [state.tokens[index], positions[index], state.decisions[index]];
    token.setAttribute("aria-selected", "true");
    token.tabIndex = 0;
    const said = story(position, decision);
    token.setAttribute("aria-label", `${label(position.text)}. ${said}`);
    const heading = make("h2", {}, make("q", {}, word(position.token)), make("small", {}, `${index + 1} of ${positions.length} · id ${position.token}`));
    $("panel").replaceChildren(heading, make("p", {class: "story"}, said));
    if (decision.known) $("panel").append(panelFacts(decision), distributions(position, decision));
    moveCursor();
    if (scroll) token.scrollIntoView({block: "nearest"});
  };

  // ---------------------------------------------------------------- timeline

  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const [TOP, BOTTOM] = [8, 112];
  const height = (x) => (BOTTOM - x * (BOTTOM - TOP)).toFixed(1);
  const left = (index) => (1000 * index / positions.length).toFixed(2);

  // Long texts are drawn as means over equal runs of tokens: thinner steps than these cannot be read.
  const MOST_STEPS = 150;
  const binned = (value) => {
    const count = Math.min(MOST_STEPS, positions.length);
    return Array.from({length: count}, (_, bin) => {
      const [from, to] = [bin, bin + 1].map((edge) => Math.floor(edge * positions.length / count));
      const part = state.decisions.slice(from, to).map((decision) => value(decision) ?? 0);
      return [from, to, part.reduce((sum, x) => sum + x, 0) / part.length];
    });
  };

  const drawTimeline = () => {
    // Steps, one a position: neither quantity means anything between two tokens.
    const steps = (value) => binned(value).map(([from, to, mean]) => `${left(from)},${height(mean)} ${left(to)},${height(mean)}`).join(" ");
    const parts = [0, 0.5, 1].map((x) => svg("line", {x1: 0, x2: 1000, y1: height(x), y2: height(x), class: "grid"}));
    if (trace.family !== "product" || state.rule) parts.push(svg("polygon", {points: `0,${BOTTOM} ${steps((d) => d.alpha)} 1000,${BOTTOM}`, class: "alpha"}));
    if (!state.rule) parts.push(svg("polyline", {points: steps((d) => d.acceptance), class: "beta"}));
    parts.push(svg("line", {class: "cursor", y1: 0, y2: 120}));
    $("timeline").querySelector("svg").replaceChildren(...parts);
    $("timeline").querySelector(".key:nth-child(2)").hidden = Boolean(state.rule);
  };

  const moveCursor = () => {
    const cursor = $("timeline").querySelector(".cursor");
    const x = 1000 * (state.at + 0.5) / positions.length;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    const decision = state.decisions[state.at];
    $("here").textContent = `${state.at + 1}: α ${number(decision.alpha)}${state.rule ? "" : ` · β ${number(decision.acceptance)}`}`;
  };

  // ---------------------------------------------------------------- another rule

  const verdict = () => {
    const name = $("verdict");
    document.querySelector(".changed").hidden = !state.rule;
    if (!state.rule) {
      name.textContent = `Showing ${trace.rule_text}, as recorded.`;
      return;
    }
    const known = positions.map((position, index) => [position, state.decisions[index], index]).filter(([, decision]) => decision.known);
    const moved = known.filter(([position, decision]) => position.base_share !== null && (decision.share > 0.5) !== (position.base_share > 0.5));
    const differs = known.filter(([position, decision]) => kad.best(decision) !== position.token);
    const parts = [`${moved.length} of ${positions.length} tokens change hands.`];
    if (differs.length) {
      const [position, decision, index] = differs[0];
      parts.push(`At ${differs.length} the most probable token is another one, first at ${index + 1}: “${word(kad.best(decision))}” for “${label(position.text)}”.`);
    } else parts.push("Every token is still the most probable one: greedy decoding would write the same text.");
    if (known.length < positions.length) parts.push(`${positions.length - known.length} cannot be decided: p was recorded down to ${positions[0].floor} only.`);
    name.textContent = parts.join(" ");
  };

  const chooseRule = (name, value) => {
    const rule = kad.rules[name];
    const start = value ?? (trace.rule.rule === name ? trace.rule[rule.parameter] : rule.start);
    for (const key of ["min", "max", "step"]) $("value")[key] = rule[key];
    $("value").value = start;
    $("value-label").textContent = rule.parameter;
    $("shown").textContent = Number($("value").value).toFixed(2);
  };

  const preview = () => {
    state.rule = $("rule").value;
    state.value = Number($("value").value);
    $("shown").textContent = state.value.toFixed(2);
    recolor();
  };

  const controls = () => {
    for (const name of Object.keys(kad.rules)) $("rule").append(make("option", {value: name}, name));
    $("rule").value = trace.rule.rule in kad.rules ? trace.rule.rule : "dual";
    chooseRule($("rule").value);
    $("rule").addEventListener("change", () => { chooseRule($("rule").value); preview(); });
    $("value").addEventListener("input", preview);
    $("reset").addEventListener("click", () => {
      state.rule = null;
      $("rule").value = trace.rule.rule in kad.rules ? trace.rule.rule : "dual";
      chooseRule($("rule").value);
      recolor();
    });
  };

  // ---------------------------------------------------------------- pointer and keyboard

  // The token on the line above or below that lies nearest in the horizontal.
  const vertical = (direction) => {
    const box = state.tokens[state.at].getClientRects()[0];
    const middle = box.left + box.width / 2;
    let [best, bestLine, bestDistance] = [state.at, null, Infinity];
    for (let index = state.at + direction; index >= 0 && index < positions.length; index += direction) {
      const rect = state.tokens[index].getClientRects()[0];
      if (!rect || direction * (rect.top - box.top) < box.height / 2) continue;
      if (bestLine !== null && Math.abs(rect.top - bestLine) > box.height / 2) break;
      bestLine ??= rect.top;
      const distance = Math.abs(rect.left + rect.width / 2 - middle);
      if (distance < bestDistance) [best, bestDistance] = [index, distance];
    }
    return best;
  };

  const keys = {
    ArrowLeft: () => Math.max(0, state.at - 1), ArrowRight: () => Math.min(positions.length - 1, state.at + 1),
    ArrowUp: () => vertical(-1), ArrowDown: () => vertical(1), Home: () => 0, End: () => positions.length - 1,
  };

  const listen = () => {
    const tokenOf = (event) => event.target.closest?.(".token");
    $("text").addEventListener("pointerover", (event) => { if (tokenOf(event)) show(Number(tokenOf(event).dataset.index), false); });
    $("text").addEventListener("focusin", (event) => { if (tokenOf(event)) show(Number(tokenOf(event).dataset.index)); });
    $("text").addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      state.tokens[keys[event.key]()].focus();
    });
    const plot = $("timeline").querySelector("svg");
    const seek = (event) => {
      const box = plot.getBoundingClientRect();
      const index = Math.floor(positions.length * (event.clientX - box.left) / box.width);
      show(Math.min(positions.length - 1, Math.max(0, index)), false);
    };
    plot.addEventListener("pointermove", seek);
    plot.addEventListener("pointerdown", (event) => { seek(event); state.tokens[state.at].scrollIntoView({block: "center"}); });
  };

  const themes = () => {
    const [names, signs] = [["auto", "light", "dark"], {auto: "◐", light: "☀", dark: "☾"}];
    let theme = "auto";
    const apply = () => {
      document.documentElement.dataset.theme = theme;
      $("theme").textContent = signs[theme];
      const said = `Color theme: ${theme === "auto" ? "as the system" : theme}`;
      $("theme").setAttribute("aria-label", said);
      $("theme").title = said;
    };
    $("theme").addEventListener("click", () => { theme = names[(names.indexOf(theme) + 1) % names.length]; apply(); });
    apply();
  };

  themes();
  facts();
  writeText();
  controls();
  listen();
  $("timeline").querySelector(".ends span:last-child").textContent = positions.length;
  recolor();
})();
