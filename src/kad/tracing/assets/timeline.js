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
    const {at, length, decisions} = this.reading;
    const cursor = this.plot.querySelector(".cursor");
    cursor.style.display = at < 0 ? "none" : "";
    if (at < 0) return;
    const x = 1000 * (at + 0.5) / length;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    this.here.textContent = `${at + 1}: α ${kad.number(decisions[at].alpha)} · β ${kad.number(decisions[at].acceptance)}`;
  }
};

// Where the two models disagree most: the positions with the largest KL(p || q*), each a button that jumps there.
kad.disagreements = (reading, jump, most = 8) => {
  const {value, sign} = kad.measures.divergence;
  const first = (position, column) => kad.word(reading.trace, position.candidates.reduce((a, b) => (b[column] > a[column] ? b : a))[0]);
  const largest = reading.positions.map((position, index) => ({position, index, value: value(position)}))
    .filter((item) => item.value !== null).sort((a, b) => b.value - a.value || a.index - b.index).slice(0, most);
  const rows = largest.map(({position, index, value: x}) => kad.make("li", {}, kad.make("button", {type: "button", click: () => jump(index)},
    kad.make("span", {class: "number"}, index + 1), kad.make("q", {}, kad.label(position.text)), kad.make("span", {class: "number"}, kad.number(x)),
    kad.make("span", {class: "firsts"}, kad.make("var", {}, "p"), ` ${first(position, 1)} `, kad.make("var", {}, "q*"), ` ${first(position, 2)}`))));
  return kad.make("details", {class: "disagreements"}, kad.make("summary", {}, "Largest disagreements"),
    largest.length ? kad.make("ol", {}, ...rows) : kad.make("p", {}, "No token of this trace has a known KL(p ‖ q*)."),
    kad.make("p", {class: "note"}, `${sign} in nats, and the first choices of the two models.`));
};
