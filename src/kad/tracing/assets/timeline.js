// Deferred mass and acceptance over the positions of a reading. Pointing at it moves the reading.
kad.Timeline = class {
  constructor(reading) {
    this.reading = reading;
    this.plot = kad.svg("svg", {viewBox: "0 0 1000 120", preserveAspectRatio: "none", role: "img", "aria-label": "Deferred mass and acceptance over the positions"});
    this.here = kad.make("output", {class: "here"});
    this.last = kad.make("span");
    const key = (kind, text) => kad.make("span", {class: "key"}, kad.make("i", {class: kind}), text);
    this.element = kad.make("figure", {class: "timeline"},
      kad.make("figcaption", {}, key("swatch aligned", "deferred mass α"), key("line", "acceptance of a draft β"), this.here),
      this.plot, kad.make("div", {class: "ends", "aria-hidden": "true"}, kad.make("span", {}, "1"), this.last));
    const seek = (event) => {
      const box = this.plot.getBoundingClientRect();
      const index = Math.floor(reading.length * (event.clientX - box.left) / box.width);
      reading.show(Math.min(reading.length - 1, Math.max(0, index)), {scroll: false});
    };
    this.plot.addEventListener("pointermove", (event) => { if (!reading.held && reading.length) seek(event); });
    this.plot.addEventListener("pointerdown", (event) => {
      if (!reading.length) return;
      seek(event);
      reading.hold(true);
      reading.tokens[reading.at].scrollIntoView({block: "nearest"});
    });
  }

  // Steps, one a position: neither quantity means anything between two tokens. Long texts are drawn as means over equal
  // runs of tokens: thinner steps than 150 cannot be read. Where a quantity is not known, the run is left out.
  runs(value) {
    const {decisions, length} = this.reading;
    const count = Math.min(150, length);
    return Array.from({length: count}, (_, run) => {
      const [from, to] = [run, run + 1].map((edge) => Math.floor(edge * length / count));
      const known = decisions.slice(from, to).map(value).filter((x) => x !== null && x !== undefined);
      return [from, to, known.length ? known.reduce((sum, x) => sum + x, 0) / known.length : null];
    });
  }

  draw() {
    const [top, bottom] = [8, 112];
    const height = (x) => Number((bottom - x * (bottom - top)).toFixed(1));
    const left = (index) => Number((1000 * index / Math.max(1, this.reading.length)).toFixed(2));
    const parts = [0, 0.5, 1].map((x) => kad.svg("line", {x1: 0, x2: 1000, y1: height(x), y2: height(x), class: "grid"}));
    const alpha = this.runs((decision) => decision.alpha).filter(([, , mean]) => mean !== null);
    parts.push(...alpha.map(([from, to, mean]) => kad.svg("rect", {class: "alpha", x: left(from), width: (left(to) - left(from)).toFixed(2), y: height(mean), height: (bottom - height(mean)).toFixed(1)})));
    let path = "";
    this.runs((decision) => decision.acceptance).forEach(([from, to, mean], index, runs) => {
      if (mean === null) return;
      path += `${index && runs[index - 1][2] !== null ? "L" : "M"}${left(from)} ${height(mean)}L${left(to)} ${height(mean)}`;
    });
    parts.push(kad.svg("path", {d: path, class: "beta"}), kad.svg("line", {class: "cursor", y1: 0, y2: 120}));
    this.plot.replaceChildren(...parts);
    this.last.textContent = this.reading.length;
    this.move();
  }

  move() {
    const {at, active, length, decisions} = this.reading;
    const cursor = this.plot.querySelector(".cursor");
    cursor.style.display = active ? "" : "none";
    if (!active) return;
    const x = 1000 * (at + 0.5) / length;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    this.here.textContent = `${at + 1}: α ${kad.number(decisions[at].alpha)} · β ${kad.number(decisions[at].acceptance)}`;
  }
};

// The model that was overruled at a position, which wanted another token than the one that is the other model's first choice.
kad.overruled = ({token, candidates}) => {
  const [p, q] = [1, 2].map((column) => candidates.reduce((a, b) => (b[column] > a[column] ? b : a))[0]);
  return p === q ? null : token === p ? "aligned" : token === q ? "base" : null;
};

// The tokens that matter: where p overruled q*, and where q* overruled p. The surer the overruled model was, the earlier.
kad.overrulings = (reading, most = 8) => {
  const {positions, trace} = reading;
  const of = (loser, column) => positions.flatMap((position, index) => {
    if (kad.isAlone(trace) || kad.overruled(position) !== loser) return [];
    const wanted = position.candidates.reduce((a, b) => (b[column] > a[column] ? b : a));
    return [{index, position, wanted: wanted[0], by: wanted[column] - (loser === "base" ? position.p : position.p_aligned)}];
  }).sort((a, b) => b.by - a.by || a.index - b.index).slice(0, most);
  return {aligned: of("aligned", 2), base: of("base", 1)};
};
// The first position at which two texts differ, or null.
kad.parting = (first, second) => {
  const ids = [first, second].map(({positions}) => positions.map(({token}) => token));
  const index = ids[0].findIndex((token, at) => token !== ids[1][at]);
  return index >= 0 ? index : ids[0].length < ids[1].length ? ids[0].length : null;
};
// The token to begin with.
kad.deciding = (reading) => {
  const {aligned, base} = kad.overrulings(reading);
  return (aligned[0] ?? base[0])?.index ?? 0;
};

// Each of them a button that leads there.
kad.overrulingLists = (reading) => {
  const found = kad.overrulings(reading);
  const signs = {base: kad.make("var", {}, "p"), aligned: kad.make("var", {}, "q*")};
  const sign = (of) => signs[of].cloneNode(true);
  const list = (winner, loser, what) => kad.make("section", {"aria-label": `${winner} overruled ${loser}`},
    kad.make("h3", {}, sign(winner), " overruled ", sign(loser), kad.make("small", {}, what)),
    found[loser].length === 0 ? kad.make("p", {class: "note"}, "Nowhere.")
      : kad.make("ol", {}, ...found[loser].map(({index, position, wanted, by}) => kad.make("li", {}, kad.make("button", {type: "button", click: () => reading.focus(index)},
        kad.make("span", {class: "number"}, index + 1), kad.make("q", {}, kad.label(position.text)),
        kad.make("span", {class: "wanted"}, sign(loser), ` wanted ${kad.word(reading.trace, wanted)}`), kad.make("span", {class: "number", title: "how much surer it was of that"}, kad.probability(by)))))));
  return kad.make("div", {class: "overrulings"}, list("base", "aligned", "knowledge"), list("aligned", "base", "manners"));
};
