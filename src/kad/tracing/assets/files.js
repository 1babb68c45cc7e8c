// A trace as a file: the data, a table, a picture. The files are made here; nothing is asked of any server.
kad.save = (name, type, content) => {
  const url = URL.createObjectURL(new Blob([content], {type}));
  const link = kad.make("a", {href: url, download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
};

// One line a token. Its text is a JSON string, so that blanks can be seen and no program takes it for a formula.
kad.csv = (trace) => {
  const columns = ["token", "p", "p_aligned", "pi", "base_share", "aligned_share", "kept", "deferred_mass", "tau", "acceptance", "rank", "entropy", "divergence", "overlap", "nobody", "event", "rejected_draft"];
  const lines = trace.positions.map((position, index) => {
    const text = `"${JSON.stringify(position.text).replace(/"/g, '""')}"`;
    return [index + 1, text, ...columns.map((column) => position[column] ?? "")].join(",");
  });
  return [["position", "text", ...columns].join(","), ...lines].join("\r\n") + "\r\n";
};

/** @type {Record<string, {name: string, title: string, type: string, make: (reading: any, timeline: any) => string}>} */
kad.files = {
  json: {name: "JSON", title: "The trace: kad trace FILE shows it again", type: "application/json", make: ({trace}) => JSON.stringify({...trace, summary: kad.summary(trace)})},
  csv: {name: "CSV", title: "A table, one line a token", type: "text/csv", make: (reading) => kad.csv(reading.trace)},
  svg: {name: "SVG", title: "A picture of the colored text and its timeline, as they are shown", type: "image/svg+xml", make: (reading, timeline) => kad.picture(reading, timeline)},
};

kad.downloads = (reading, timeline, extra = {}) => kad.make("div", {class: "downloads", role: "group", "aria-label": "Download"}, "Download ",
  ...Object.entries({...kad.files, ...extra}).map(([suffix, file]) => kad.make("button",
    {type: "button", title: file.title, click: () => kad.save(`trace.${suffix}`, file.type, file.make(reading, timeline))}, file.name)));

// The text and its timeline as they are shown, as an SVG that stands alone.
kad.picture = (reading, timeline) => {
  const look = getComputedStyle(document.documentElement);
  const [paper, ink, soft, line, base, aligned, heat, baseTint, alignedTint] = ["paper", "ink", "soft", "rule", "base", "aligned", "heat", "base-tint", "aligned-tint"].map((name) => look.getPropertyValue(`--${name}`).trim());
  const channels = (color) => (color.length === 4 ? [...color.slice(1)].map((c) => parseInt(c + c, 16)) : [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
  const mix = (a, b, share) => `rgb(${channels(a).map((x, i) => Math.round(x * share + channels(b)[i] * (1 - share))).join(",")})`;
  // Characters that XML forbids.
  const clean = (text) => text.replace(/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "�");

  const box = reading.element.getBoundingClientRect();
  const font = getComputedStyle(reading.element);
  const size = parseFloat(font.fontSize);
  const [margin, head] = [16, 48];
  const place = (rect) => [margin + rect.left - box.left, margin + head + rect.top - box.top + reading.element.scrollTop];
  const words = kad.svg("g", {"font-size": size, fill: ink});
  let bottom = margin + head;

  // A token that wraps is drawn line by line.
  const linesOf = (token) => {
    const lines = [];
    const range = document.createRange();
    const add = (character, rect) => {
      const last = lines.at(-1);
      if (last && Math.abs(last.top - rect.top) < size / 2) [last.text, last.right] = [last.text + character, Math.max(last.right, rect.right)];
      else lines.push({text: character, left: rect.left, top: rect.top, right: rect.right, height: rect.height});
    };
    if (token.classList.contains("empty")) add("·", token.getBoundingClientRect());
    else for (const node of token.childNodes) {
      if (node.nodeType !== Node.TEXT_NODE) add("⏎", node.getBoundingClientRect());
      else for (let at = 0; at < node.length; at++) {
        range.setStart(node, at);
        range.setEnd(node, at + 1);
        const [rect] = range.getClientRects();
        if (rect && node.data[at] !== "\n") add(node.data[at], rect);
      }
    }
    return lines;
  };

  reading.tokens.forEach((token, index) => {
    const share = Number(token.style.getPropertyValue("--share"));
    const [known, warm] = [!token.classList.contains("unknown"), token.classList.contains("heat")];
    for (const rect of linesOf(token)) {
      const [x, y] = place(rect);
      const width = rect.right - rect.left;
      const fill = !known ? paper : warm ? mix(heat, paper, 0.6 * share) : mix(baseTint, alignedTint, share);
      words.append(kad.svg("rect", {x, y, width, height: rect.height + 3, fill}));
      if (known) {
        words.append(kad.svg("rect", {x, y: y + rect.height, width: width * share, height: 3, fill: warm ? heat : base}));
        if (!warm) words.append(kad.svg("rect", {x: x + width * share, y: y + rect.height, width: width * (1 - share), height: 3, fill: "url(#kad-hatch)"}));
      }
      const text = kad.svg("text", {x, y: y + 0.8 * rect.height, textLength: width, lengthAdjust: "spacingAndGlyphs", "xml:space": "preserve"}, clean(rect.text));
      text.append(kad.svg("title", {}, clean(`${index + 1}: ${kad.story(reading, index)}`)));
      words.append(text);
      bottom = Math.max(bottom, y + rect.height + 3);
    }
  });

  const plot = kad.svg("g", {transform: `translate(${margin} ${bottom + 24}) scale(${box.width / 1000} 0.8)`});
  for (const child of timeline.plot.children) {
    if (child.classList.contains("cursor")) continue;
    const looks = {grid: {stroke: line}, alpha: {fill: aligned, "fill-opacity": 0.45}, beta: {fill: "none", stroke: ink, "stroke-width": 1.5}}[child.getAttribute("class")];
    const attributes = Object.fromEntries([...child.attributes].map(({name, value}) => [name, value]));
    plot.append(kad.svg(child.tagName, {...attributes, ...looks, "vector-effect": "non-scaling-stroke"}));
  }
  const [width, height] = [box.width + 2 * margin, bottom + 24 + 96 + margin];
  const hatch = kad.svg("pattern", {id: "kad-hatch", width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)"}, kad.svg("rect", {width: 2, height: 4, fill: aligned}));
  const measure = kad.measures[reading.measure];
  const titles = [kad.ruleText(reading.trace, reading.rule, reading.value), `color: ${measure.name}; below: α and β`];
  const root = kad.svg("svg", {viewBox: `0 0 ${width} ${height}`, width, height, "font-family": font.fontFamily},
    kad.svg("defs", {}, hatch), kad.svg("rect", {width, height, fill: paper}), 
    ...titles.map((title, line) => kad.svg("text", {x: margin, y: margin + 14 + 18 * line, "font-size": 13, fill: line ? soft : ink}, clean(title))), words, plot);
  return new XMLSerializer().serializeToString(root);
};
