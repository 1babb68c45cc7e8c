// One answer of one model: a text that grows, its numbers, and what can be done with it.
//
// `column` is plain data, and is kept over a reload: what was asked (`request`), how (`made`), and what came. The view
// shows it.
kad.Answer = class {
  constructor(column, {shown, link}) {
    Object.assign(this, {column, shown, link, reading: null});
    this.head = kad.make("h2", {});
    this.place = kad.make("div", {});
    this.stats = kad.make("p", {class: "stats"});
    this.problem = kad.make("p", {class: "problem", role: "alert", hidden: true});
    this.more = kad.make("details", {class: "more", hidden: true, toggle: () => this.fill()}, kad.make("summary", {}, "Timeline, disagreements, files"));
    this.element = kad.make("section", {class: "answer", "aria-label": this.name}, this.head, this.place, this.problem, this.stats, this.more);
    this.write();
  }

  get name() { return {base: "Base alone", aligned: "Aligned alone", composed: "Composed"}[this.column.of]; }

  // What the server says: the trace without its tokens, tokens, the end.
  take(events) {
    const {column} = this;
    const pieces = [];
    for (const [name, data] of events) {
      if (name === "start") {
        // A continuation keeps the tokens before the one that it begins with.
        const {positions = [], vocabulary = {}} = column.trace ?? {};
        column.trace = {...data.trace, generation: {...column.made}, vocabulary, positions};
        this.reading = null;
        column.facts = {drafting: data.drafting, draft_tokens: data.draft_tokens, seed: data.seed, temperature: data.temperature};
      }
      if (name === "piece") {
        Object.assign(column.trace.vocabulary, data.vocabulary);
        pieces.push(data.position);
        column.seconds = data.seconds;
        column.drawn = (column.drawn ?? 0) + (data.forced ? 0 : 1);
      }
      if (name === "done") {
        column.done = data;
        Object.assign(column.trace.generation, data.generation);
      }
    }
    if (!this.reading && column.trace) this.write();
    if (pieces.length) this.reading.add(pieces);
    this.say();
  }

  write() {
    const {trace} = this.column;
    if (trace) {
      this.reading = new kad.Reading(trace, {name: `${this.name}: tokens of the answer; arrow keys move between them`, shown: (index) => this.shown(this, index), link: (index) => this.link(this, index)});
      this.place.replaceChildren(this.reading.element);
    }
    this.say();
  }

  running(is) {
    this.element.classList.toggle("running", is);
    this.element.setAttribute("aria-busy", String(is));
    this.more.hidden = is || !this.reading?.length || kad.isAlone(this.reading.trace);
    this.say();
  }

  say() {
    const {trace, done, problem, seconds, drawn, facts} = this.column;
    const drawing = !facts ? "" : facts.seed === null ? "greedy" : `temperature ${facts.temperature}, seed ${facts.seed}`;
    const title = this.column.of === "composed" ? trace?.rule_text ?? "" : this.name;
    this.head.replaceChildren(title, kad.make("small", {}, drawing));
    this.problem.hidden = !problem;
    this.problem.textContent = problem ?? "";
    if (!trace) return;
    const sum = kad.summary(trace);
    const parts = [`${sum.tokens} tokens${kad.isAlone(trace) ? " of its own" : ""}`];
    const speed = done ? done.tokens_per_second : drawn / seconds;
    if (Number.isFinite(speed) && speed > 0) parts.push(`${speed.toFixed(speed < 10 ? 1 : 0)} per second`);
    if (sum.mean_base_share !== null) parts.push(`${kad.percent(sum.mean_base_share)} from base`);
    const drafted = sum.accepted + sum.corrected;
    if (drafted) parts.push(`drafts: ${sum.accepted} accepted, ${sum.corrected} rejected`);
    const ends = {length: "ended at the token limit", context: "the context is full", interrupted: "stopped", stop_string: "ended at a stop"};
    if (done && ends[done.finish_reason]) parts.push(ends[done.finish_reason]);
    this.stats.textContent = parts.join(" · ");
  }

  // The rest, made when it is looked at.
  fill() {
    if (!this.more.open || this.more.childElementCount > 1) return;
    const {reading} = this;
    this.timeline = new kad.Timeline(reading);
    const jump = (index) => reading.tokens[index].focus();
    const html = {name: "Page", title: "A page of its own, which works offline", type: "text/html", make: () => this.page()};
    this.more.append(this.timeline.element, kad.disagreements(reading, jump), kad.downloads(reading, this.timeline, {html}));
    this.timeline.draw();
  }

  page() {
    const empty = JSON.parse(document.getElementById("trace-page").textContent);
    const data = `[${kad.files.json.make(this.reading)}]`.replace(/[<>&\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
    return empty.replace("<!-- kad:" + "data -->", () => data);
  }
};
