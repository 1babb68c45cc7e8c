// What the page asks of its server: the OpenAI API, with what only kad knows in the fields "kad".
kad.server = (() => {
  // With a key, the address that the command opens has a code behind a #, which works once. Whoever types the address may
  // write #key= and the key there. Neither stays in the address.
  const [, kind, secret] = location.hash.match(/^#(code|key)=(.+)$/) ?? [];
  if (kind) history.replaceState(null, "", location.pathname);
  const keep = (key) => { if (key) sessionStorage.setItem("kad-key", key); };
  if (kind === "key") keep(decodeURIComponent(secret));
  const known = kind === "code"
    ? fetch("/key", {method: "POST", body: secret}).then((response) => response.json()).then(({key}) => keep(key)).catch(() => {})
    : Promise.resolve();
  const gone = "The server does not answer. Is kad playground still running?";

  const send = async (path, options) => {
    await known;
    const key = sessionStorage.getItem("kad-key");
    const headers = {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
    let response;
    try {
      response = await fetch(path, {headers, cache: "no-store", ...options});
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error(gone);
    }
    if (response.ok) return response;
    const said = await response.json().catch(() => null);
    throw new Error(said?.error?.message ?? `The server answered with status ${response.status}.`);
  };

  // Calls `take` with the fields "kad" of the chunks as they come, a few at a time.
  const answer = async (request, signal, take) => {
    const response = await send("/v1/chat/completions", {method: "POST", body: JSON.stringify({...request, stream: true}), signal});
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const broken = new Error("The connection broke before the answer was complete.");
    for (let rest = ""; ;) {
      const {done, value} = await reader.read().catch((error) => { throw error.name === "AbortError" ? error : broken; });
      if (done) throw broken;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      const data = blocks.map((block) => block.slice("data: ".length));
      const chunks = data.filter((text) => text !== "[DONE]").map((text) => JSON.parse(text));
      take(chunks.map((chunk) => chunk.kad).filter(Boolean));
      const failed = chunks.find((chunk) => chunk.error);
      if (failed) throw new Error(failed.error.message);
      if (data.at(-1) === "[DONE]") return;
    }
  };

  // The pair: its name, and what the server says of it.
  const pair = async () => {
    const {data: [{id, kad: facts}]} = await (await send("/v1/models", {})).json();
    return {name: id, ...facts};
  };

  return {pair, answer};
})();

// Whether a text ends with the expected number in the box that the embedded pair is asked for.
kad.boxVerdict = (text, expected) => {
  const box = [...text.matchAll(/\\boxed\{([^{}]*)\}/g)].at(-1)?.[1];
  if (box !== undefined) return box === expected ? "✓ right, in the box" : `✗ wrong: ${box} in the box`;
  const right = text.match(/-?\d+/g)?.at(-1) === expected;
  return right ? `✗ ${expected} is right, but not in the box` : "✗ wrong, and not in the box";
};

// One answer of one model: a text that grows, its numbers, and what can be done with it.
//
// `column` is plain data, and is kept over a reload: the request, how it is made (`generation`), and what came. The view
// shows it.
kad.Answer = class {
  column; shown; link; reading = null; timeline = null;

  constructor(column, {shown, link}) {
    Object.assign(this, {column, shown, link});
    this.head = kad.make("h2", {});
    this.place = kad.make("div", {});
    this.stats = kad.make("p", {class: "stats"});
    this.problem = kad.make("p", {class: "problem", role: "alert", hidden: true});
    this.mark = kad.make("p", {class: "outcome", hidden: true});
    this.more = kad.make("details", {class: "more", hidden: true, toggle: () => this.fill()}, kad.make("summary", {}, "Details and files"));
    this.element = kad.make("section", {class: "answer", "aria-label": this.name}, this.head, this.place, this.mark, this.problem, this.stats, this.more);
    this.write();
  }

  get name() { return {base: "Base alone", aligned: "Aligned alone", composed: "Together"}[this.column.of]; }

  // What the server says: tokens, the trace with the first of them, the end.
  take(details) {
    const {column} = this;
    const positions = [];
    for (const {trace, position, vocabulary, seconds, ...end} of details) {
      if (trace) {
        // A continuation keeps the tokens before the one that it begins with. That one is not drawn.
        const {positions: before = [], vocabulary: words = {}} = column.trace ?? {};
        column.trace = {...trace, generation: {...trace.generation, ...column.generation}, vocabulary: words, positions: before};
        column.drawn = column.request.kad.continuation.length ? -1 : 0;
        this.reading = null;
      }
      if (position) {
        Object.assign(column.trace.vocabulary, vocabulary);
        positions.push(position);
        [column.seconds, column.drawn] = [seconds, column.drawn + 1];
      } else {
        column.done = end;
        Object.assign(column.trace.generation, end.generation);
      }
    }
    if (!this.reading && column.trace) this.write();
    if (positions.length) this.reading.add(positions);
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

  // The answer as tokens, or, where its text is given, as what that text is written in.
  read(text) {
    if (!this.reading) return;
    // Tokens that are there already keep the focus.
    if (text !== null) this.place.replaceChildren(kad.prose(text));
    else if (!this.reading.element.isConnected) this.place.replaceChildren(this.reading.element);
  }

  running(is) {
    this.element.classList.toggle("running", is);
    this.element.setAttribute("aria-busy", String(is));
    this.more.hidden = is || !this.reading?.length || kad.isAlone(this.reading.trace);
    if (!this.reading) this.place.replaceChildren(...(is ? [kad.make("p", {class: "waiting"}, "Waiting for the first token ")] : []));
    this.say();
  }

  say() {
    const {trace, done, problem, seconds, drawn} = this.column;
    const {do_sample: sampled, temperature, seed} = trace?.generation ?? {};
    const drawing = !trace ? "" : sampled ? `temperature ${temperature}, seed ${seed}` : "greedy";
    const title = this.column.of === "composed" ? `${this.name} (${kad.ruleWords(trace?.rule_text ?? this.column.rule)})` : this.name;
    this.head.replaceChildren(title, kad.make("small", {}, drawing));
    this.problem.hidden = !problem;
    this.problem.textContent = problem ?? "";
    const {expected} = this.column;
    this.mark.hidden = !expected || !done;
    if (expected && done) this.mark.textContent = kad.boxVerdict(done.text, expected);
    if (!trace) return;
    const sum = kad.summary(trace);
    const parts = [`${sum.tokens} tokens${kad.isAlone(trace) ? " of its own" : ""}`];
    const speed = done ? done.tokens_per_second : drawn / seconds;
    if (Number.isFinite(speed) && speed > 0) parts.push(`${speed.toFixed(speed < 10 ? 1 : 0)} per second`);
    if (sum.mean_base_share !== null) parts.push(`${kad.percent(sum.mean_base_share)} from base`);
    const drafted = sum.accepted + sum.corrected;
    if (drafted) parts.push(`drafts: ${sum.accepted} accepted, ${sum.corrected} rejected`);
    const ends = {length: "ended at the token limit", context: "the context is full", stop_string: "ended at a stop"};
    const end = done && (ends[done.generation.finish_reason] ?? (kad.endedBy(trace) && `ended by the ${kad.endedBy(trace)} model`));
    if (end) parts.push(end);
    this.stats.textContent = parts.join(" · ");
  }

  // The rest, made when it is looked at.
  fill() {
    if (!this.more.open || this.more.childElementCount > 1) return;
    const {reading} = this;
    this.timeline = new kad.Timeline(reading);
    const html = {name: "Page", title: "A page of its own, which works offline", type: "text/html", make: () => this.page()};
    this.more.append(this.timeline.element, kad.overrulingLists(reading), kad.downloads(reading, this.timeline, {html}));
    this.timeline.draw();
  }

  page() {
    const empty = JSON.parse(document.getElementById("data").textContent);
    const data = `[${kad.files.json.make(this.reading)}]`.replace(/[<>&\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
    return empty.replace("<!-- kad:" + "data -->", () => data);
  }
};
