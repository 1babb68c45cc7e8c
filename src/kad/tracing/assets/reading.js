// A text whose tokens can be pointed at: colored by a measure, and moved through with pointer and keyboard.
//
// It is text: it is read, selected and copied as it is. Only the token in focus is a button, which Tab reaches.
//
// A reading shows `trace`, and `add` takes further positions as they come. `shown(index)` is called for the token in focus,
// `recolored()` after the colors changed. A click or a key holds the token; then the pointer alone moves nothing.
kad.Reading = class {
  trace; shown; recolored; link;
  rule = null; value = null; measure = "origin";
  at = 0; held = false; active = false;
  decisions = []; tokens = [];

  constructor(trace, {name, shown = (_index) => {}, recolored = () => {}, link = null}) {
    Object.assign(this, {trace, shown, recolored, link});
    this.element = kad.make("div", {class: "text", role: "group", "aria-label": name});
    this.listen();
    this.write();
  }

  get positions() { return this.trace.positions; }

  get length() { return this.tokens.length; }

  add(positions) {
    this.positions.push(...positions);
    this.write();
  }

  // The positions that are not written yet. Each line is a block: then the browser lays out no line again but the last.
  write() {
    let line = this.element.lastElementChild;
    for (const position of this.positions.slice(this.length)) {
      if (!line || this.tokens.at(-1).textContent.endsWith("\n")) this.element.append(line = kad.make("div"));
      kad.drafts(position).forEach((draft, nth) => line.append(
        kad.make("s", {class: nth ? "draft dropped" : "draft", "aria-hidden": "true"}, kad.word(this.trace, draft))));
      const token = this.token(position);
      this.tokens.push(token);
      line.append(token);
      this.color(this.length - 1);
      if (this.length === 1) this.mark();
    }
  }

  token(position) {
    const {text} = position;
    const token = kad.make("span", {class: "token", "data-index": this.length});
    // The style shows a sign before a line break, and a dot for what has no width (unfinished characters, marks).
    if (/^[\p{C}\p{Z}]*$/u.test(text) && !/[ \n\t]/.test(text)) token.classList.add("empty");
    token.append(...text.split(/(?=\n)/).flatMap((part) => (part[0] === "\n" ? [kad.make("i", {class: "break"}), part] : [part])));
    if (position.event) token.classList.add(position.event);
    if (this.trace.generation.chosen?.includes(this.length)) token.classList.add("chosen");
    return token;
  }

  // Another rule on this text, or null: as it was recorded.
  decideBy(rule, value) {
    [this.rule, this.value] = [rule, value];
    this.recolor();
  }

  colorBy(measure) {
    this.measure = measure;
    this.recolor();
  }

  recolor() {
    for (let index = 0; index < this.length; index++) this.color(index);
    if (this.active) this.show(this.at, {scroll: false});
    this.recolored();
  }

  color(index) {
    const [token, position] = [this.tokens[index], this.positions[index]];
    const decision = this.rule ? kad.decide(position, this.rule, this.value) : kad.recorded(position, this.trace.family);
    this.decisions[index] = decision;
    const value = decision.known ? kad.measures[this.measure].value(position, decision) : null;
    const heat = this.measure !== "origin";
    token.classList.toggle("heat", heat);
    token.classList.toggle("unknown", value === null);
    token.classList.toggle("differs", Boolean(this.rule) && decision.known && kad.best(decision) !== position.token);
    const level = value === null ? 0 : heat ? Math.min(1, Math.max(0, kad.measures[this.measure].level(value))) : value;
    token.style.setProperty("--share", level);
    token.dataset.share = decision.known && decision.share !== null ? decision.share.toFixed(4) : "";
    token.dataset.value = value === null ? "" : value;
  }

  show(index, {scroll = true} = {}) {
    if (index !== this.at) for (const name of ["aria-current", "aria-label", "role", "tabindex"]) this.tokens[this.at].removeAttribute(name);
    [this.at, this.active] = [index, true];
    this.mark();
    this.shown(index);
    if (scroll) this.tokens[index].scrollIntoView({block: "nearest"});
  }

  // The token in focus, or the one that Tab leads to.
  mark() {
    const label = `${kad.spoken(this.positions[this.at].text)}. ${kad.story(this, this.at)}`;
    const marks = {role: "button", tabindex: "0", "aria-label": label, ...(this.active ? {"aria-current": "true"} : {})};
    for (const [name, value] of Object.entries(marks)) this.tokens[this.at].setAttribute(name, value);
  }

  focus(index) {
    this.take(index);
    this.tokens[index].focus();
  }

  take(index) {
    this.hold(true);
    this.show(index);
    this.link?.(index);
  }

  hold(held) {
    this.held = held;
    this.element.classList.toggle("held", held);
  }

  // Nothing is in focus any more, because another text is.
  leave() {
    this.hold(false);
    this.active = false;
    this.tokens[this.at]?.removeAttribute("aria-current");
  }

  // The token on the line above or below that lies nearest in the horizontal.
  vertical(direction) {
    const box = this.tokens[this.at].getClientRects()[0];
    const middle = box.left + box.width / 2;
    let [best, bestLine, bestDistance] = [this.at, null, Infinity];
    for (let index = this.at + direction; index >= 0 && index < this.length; index += direction) {
      const rect = this.tokens[index].getClientRects()[0];
      if (!rect || direction * (rect.top - box.top) < box.height / 2) continue;
      if (bestLine !== null && Math.abs(rect.top - bestLine) > box.height / 2) break;
      bestLine ??= rect.top;
      const distance = Math.abs(rect.left + rect.width / 2 - middle);
      if (distance < bestDistance) [best, bestDistance] = [index, distance];
    }
    return best;
  }

  listen() {
    const indexOf = (event) => {
      const token = event.target.closest?.(".token");
      return token ? Number(token.dataset.index) : null;
    };
    const keys = {
      ArrowLeft: () => Math.max(0, this.at - 1), ArrowRight: () => Math.min(this.length - 1, this.at + 1),
      ArrowUp: () => this.vertical(-1), ArrowDown: () => this.vertical(1), Home: () => 0, End: () => this.length - 1,
    };
    this.element.addEventListener("pointerover", (event) => {
      if (!this.held && event.pointerType === "mouse" && indexOf(event) !== null) this.show(indexOf(event), {scroll: false});
    });
    let wasHeld = false;
    this.element.addEventListener("pointerdown", (event) => { wasHeld = this.held && indexOf(event) === this.at; });
    this.element.addEventListener("focusin", (event) => {
      if (indexOf(event) !== null && !(this.held && this.at === indexOf(event))) this.take(indexOf(event));
    });
    this.element.addEventListener("click", (event) => {
      if (wasHeld) this.hold(false);
      else if (indexOf(event) !== null && getSelection().isCollapsed) this.focus(indexOf(event));
    });
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.hold(false);
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        this.hold(!this.held);
      }
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey || !this.length) return;
      event.preventDefault();
      this.focus(keys[event.key]());
    });
  }
};
