// The rule and its parameter. `changed(rule, value)` gets null as the rule where the recorded one is meant.
//
// A recorded rule without a slider (base_only, mixture, ...) is an entry of its own: no other rule stands beside it.
kad.RuleControls = class {
  recorded; changed; rules; own;

  constructor({recorded, text, changed, rules = kad.rules, reset = "As recorded"}) {
    Object.assign(this, {recorded, changed, rules, own: !(recorded.rule in rules)});
    this.rule = kad.make("select", {class: "rule", change: () => this.choose(this.rule.value)});
    if (this.own) this.rule.append(kad.make("option", {value: ""}, text));
    for (const name of Object.keys(rules)) this.rule.append(kad.make("option", {value: name}, name));
    this.value = kad.make("input", {type: "range", class: "value", input: () => this.slide()});
    this.name = kad.make("span", {class: "parameter"});
    this.shown = kad.make("output", {class: "shown"});
    this.ends = [kad.make("small", {"aria-hidden": "true"}), kad.make("small", {"aria-hidden": "true"})];
    this.slider = kad.make("label", {class: "slider"}, this.name, kad.make("span", {class: "track"}, this.ends[0], this.value, this.ends[1]), this.shown);
    this.back = kad.make("button", {type: "button", class: "reset", click: () => this.restore()}, reset);
    this.element = kad.make("div", {class: "controls"}, kad.make("label", {}, "Rule ", this.rule), this.slider, this.back);
    this.restore(false);
  }

  restore(tell = true) {
    this.rule.value = this.own ? "" : this.recorded.rule;
    this.range(this.own ? null : this.recorded[this.rules[this.recorded.rule].parameter]);
    if (tell) this.changed(null, null);
  }

  choose(name) {
    if (!name) return this.restore();
    this.range(this.rules[name].start);
    return this.slide();
  }

  // A rule that was chosen before; `changed` is not called.
  set(name, value) {
    this.rule.value = name;
    this.range(value);
  }

  slide() {
    this.say(Number(this.value.value));
    this.changed(this.rule.value, this.slider.hidden ? null : Number(this.value.value));
  }

  range(value) {
    const rule = this.rules[this.rule.value];
    this.slider.hidden = !rule?.parameter;
    if (this.slider.hidden) return;
    for (const key of ["min", "max", "step"]) this.value[key] = rule[key];
    this.value.value = value;
    this.name.textContent = `${rule.parameter} ${rule.sign ?? ""}`.trim();
    [this.ends[0].textContent, this.ends[1].textContent] = [rule.min, rule.max];
    this.say(value);
  }

  say(value) {
    this.shown.textContent = kad.parameter(value);
    this.value.setAttribute("aria-valuetext", `${this.name.textContent} ${this.shown.textContent}`);
  }
};

// What another rule would change on the text of a reading, in words.
kad.verdict = (reading) => {
  const {trace, positions, decisions, rule} = reading;
  if (!rule) return `Showing ${kad.ruleWords(trace.rule_text)}, as recorded.`;
  const known = positions.map((position, index) => [position, decisions[index], index]).filter(([, decision]) => decision.known);
  const moved = known.filter(([position, decision]) => position.base_share !== null && (decision.share > 0.5) !== (position.base_share > 0.5));
  const differs = known.filter(([position, decision]) => kad.best(decision) !== position.token);
  const parts = [`${moved.length} of ${positions.length} tokens change hands.`];
  if (differs.length) {
    const [position, decision, index] = differs[0];
    parts.push(`At ${differs.length} the most probable token is another one, first at ${index + 1}: “${kad.word(trace, kad.best(decision))}” for “${kad.label(position.text)}”.`);
  } else parts.push("Every token is still the most probable one: greedy decoding would write the same text.");
  if (known.length < positions.length) parts.push(`${positions.length - known.length} cannot be decided: p was recorded down to ${positions[0].floor} only.`);
  return parts.join(" ");
};

// A text as one word of a shell. And a command, or null: a control character would act when it is pasted, inside quotes, too.
kad.quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\\''")}'`);
kad.pasted = (command) => (/[\x00-\x09\x0b-\x1f\x7f-\x9f]/.test(command) ? null : command);

// The command that asks the same question again under the rule shown, or null if the trace does not hold the question.
// A trace may come from anybody: options have our names, every value is quoted, and the prompt stands after --.
kad.command = (reading) => {
  const {trace} = reading;
  const {asked, do_sample: sampled, temperature, seed} = trace.generation;
  if (!asked) return null;
  const roles = ["base", "aligned", "reference"].filter((role) => role in trace.models);
  const models = asked.pair ? [["pair", asked.pair]] : roles.map((role) => [role, trace.models[role]]);
  const options = [...models, ["rule", kad.ruleText(trace, reading.rule, reading.value)]];
  if (asked.base_prompt) options.push(["base-prompt", asked.base_prompt]);
  if (asked.system) options.push(["system", asked.system]);
  options.push(["temperature", sampled ? temperature : 0]);
  if (sampled) options.push(["seed", seed]);
  if (trace.deferral_temperature !== 1) options.push(["deferral-temperature", trace.deferral_temperature]);
  const flags = [asked.raw ? "--raw" : "", asked.thinking === true ? "--thinking" : asked.thinking === false ? "--no-thinking" : ""].filter(Boolean);
  const values = options.map(([name, value]) => `--${name} ${kad.quoted(String(value))}`);
  const command = ["kad trace", ...values, ...flags, "-o trace.html", "--", kad.quoted(String(asked.prompt))].join(" ");
  return kad.pasted(command);
};

// A button that copies a text. Where the browser refuses, the place that shows it is selected instead.
kad.copyButton = (text, place) => {
  const button = kad.make("button", {type: "button", click: async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(place());
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }}, "Copy");
  return button;
};

// A line of text that can be copied.
kad.copyable = (title) => {
  const text = kad.make("code", {tabindex: "0"});
  const button = kad.copyButton(() => text.textContent, () => text);
  const element = kad.make("div", {class: "command"}, kad.make("span", {}, title), kad.make("div", {}, text, button));
  return {element, set: (value) => { element.hidden = value === null; text.textContent = value ?? ""; }};
};

// Whether the marks of speculation are shown.
kad.draftsChoice = () => {
  const box = kad.make("input", {type: "checkbox", id: "drafts", change: () => document.body.classList.toggle("with-drafts", box.checked)});
  return kad.make("label", {}, box, " Show drafts");
};

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
  if (drafts) {
    const marks = [kad.make("span", {class: "key of-drafts"}, kad.make("s", {}, "word"), "rejected draft"), kad.make("span", {class: "key of-drafts"}, "⁺ bonus token")];
    legend.append(...marks);
  }
  const changed = key("mark differs", "greedy picks another");
  changed.classList.add("changed");
  legend.append(changed);
  return legend;
};
