// The playground: a conversation whose answers are readings, and what can be changed about them.
//
// All that is shown is plain data in `talk`, which is kept over a reload: turns with versions of a question and its answer.
// A version has one column, or three: base alone, aligned alone, together.
(() => {
  /** @returns {any} */
  const $ = (id) => document.getElementById(id);
  const panel = kad.panelPlace(document.querySelector("aside"));
  const talk = {turns: [], settings: {rule: null, value: null}, ...stored("kad-talk")};
  const views = new Map();
  let [facts, controls, running, measure, early] = [null, null, null, "origin", false];

  // ---------------------------------------------------------------- kept over a reload

  function stored(name) {
    try { return JSON.parse(sessionStorage.getItem(name)) ?? {}; } catch { return {}; }
  }
  const keep = () => {
    try { sessionStorage.setItem("kad-talk", JSON.stringify(talk)); } catch {
      // More than the browser keeps: then a reload finds the conversation as it last fitted.
    }
  };
  const say = (text) => { $("said").textContent = text; };

  // ---------------------------------------------------------------- asking

  const ruleText = () => {
    const {rule, value} = talk.settings;
    return !rule ? null : value === null ? rule : `${rule}:${controls.rules[rule].parameter}=${value}`;
  };
  const option = (name) => $("options").querySelector(`[name=${name}]`).value;
  const choices = () => {
    const chosen = {model: facts.name, rule: ruleText()};
    for (const name of ["temperature", "max_tokens", "seed"]) if (option(name) !== "") chosen[name] = Number(option(name));
    const drafts = option("num_draft_tokens");
    if (drafts !== "") chosen.num_draft_tokens = drafts === "auto" ? drafts : Number(drafts);
    if (option("thinking") !== "") chosen.chat_template_kwargs = {enable_thinking: option("thinking") === "on"};
    return chosen;
  };
  const shownColumn = (turn) => turn.versions[turn.shown].columns.at(-1);
  const messages = (turns, question) => {
    const said = turns.flatMap((turn) => [{role: "user", content: questionOf(turn)}, {role: "assistant", content: textOf(shownColumn(turn))}]);
    const system = option("system");
    return [...(system ? [{role: "system", content: system}] : []), ...said, {role: "user", content: question}];
  };
  const questionOf = (turn) => shownColumn(turn).request.messages.at(-1).content;
  const textOf = (column) => column.done?.text ?? (column.trace?.positions ?? []).map((position) => position.text).join("");

  // The question as kad trace can ask it again, if there is nothing before it.
  const generationOf = (request) => {
    const [system, ...others] = request.messages[0].role === "system" ? request.messages : [null, ...request.messages];
    // Two models without a pair are named base+aligned.
    const unnamed = facts.name.startsWith(`${facts.models.base}+`);
    const command = {prompt: others[0].content, ...(unnamed ? {} : {pair: facts.name}), ...(system ? {system: system.content} : {}),
      ...(request.chat_template_kwargs ? {thinking: request.chat_template_kwargs.enable_thinking} : {})};
    return {source: "generated", ...(others.length === 1 ? {asked: command} : {})};
  };
  const columnOf = (of, request, {continuation, ...more}) => ({of, request: {...request, kad: {of, continuation}}, generation: generationOf(request), rule: request.rule ?? facts.rule, trace: null, done: null, problem: null, ...more});

  // A question whose answer is known, `expected`, is asked in three columns, with a verdict under each.
  const ask = (question, expected = null) => {
    const turn = {versions: [], shown: 0, expected};
    talk.turns.push(turn);
    $("talk").querySelector(".welcome")?.remove();
    again(turn, $("columns").checked || expected !== null, question);
  };
  const again = (turn, all, question = questionOf(turn)) => {
    const request = {messages: messages(talk.turns.slice(0, talk.turns.indexOf(turn)), question), ...choices()};
    if (turn.versions.length && question !== questionOf(turn)) turn.expected = null;
    run(turn, (all ? ["base", "aligned", "composed"] : ["composed"]).map((of) => columnOf(of, request, {continuation: [], expected: turn.expected})));
  };
  // What if: the text up to a token, another token there, and on from it, as this answer was made.
  const branch = (column, index, token) => {
    const turn = talk.turns.find(({versions}) => versions.some(({columns}) => columns.includes(column)));
    const before = column.trace.positions.slice(0, index).map((position) => position.token);
    const chosen = [...(column.trace.generation.chosen ?? []).filter((at) => at < index), index];
    goOn(turn, column, [...before, token], {...column.generation, chosen});
  };
  const goOn = (turn, column, continuation, generation = column.generation) => {
    const trace = structuredClone({...column.trace, positions: column.trace.positions.slice(0, continuation.length - 1)});
    run(turn, [columnOf(column.of, column.request, {continuation, generation, trace, expected: turn.expected})]);
  };

  // ---------------------------------------------------------------- answering

  const run = async (turn, columns) => {
    if (running) return;
    turn.versions.push({columns});
    [turn.shown, running] = [turn.versions.length - 1, new AbortController()];
    unfocus();
    const {signal} = running;
    busy(true);
    show(turn);
    const answers = columns.map((column) => views.get(column));
    $("composer").scrollIntoView({block: "end"});
    say("Answering.");
    await Promise.all(answers.map(async (answer) => {
      answer.running(true);
      try {
        await kad.server.answer(answer.column.request, signal, (details) => { answer.take(details); followEnd(); });
      } catch (error) {
        if (error.name !== "AbortError") answer.column.problem = error.message;
      }
      answer.running(false);
    }));
    running = null;
    busy(false);
    keep();
    show(turn);
    if (columns.some(({problem}) => problem)) connect();
    open(answers);
    say(columns.some(({problem}) => problem) ? "The answer failed." : `The answer has ${columns.at(-1).trace?.positions.length ?? 0} tokens.`);
  };
  // The token in focus after an answer: the one that was chosen ("what if"), else where together and alone part, else the
  // token that matters most. Not where somebody holds a token already.
  const open = (answers) => {
    const {reading, column: {trace, request: {kad: {continuation}}}} = answers.at(-1);
    if (!reading?.length || [...views.values()].some((answer) => answer.reading?.held)) return;
    const aligned = answers.at(-2)?.reading;
    const parted = aligned?.length ? kad.parting(aligned, reading) : null;
    if (parted !== null) for (const side of [aligned, reading]) side.tokens[parted]?.classList.add("parting");
    const chosen = continuation.length && trace.generation.chosen ? continuation.length - 1 : null;
    reading.show(Math.min(chosen ?? parted ?? (kad.isAlone(trace) ? 0 : kad.deciding(reading)), reading.length - 1), {scroll: false});
  };
  // The end of the text stays in sight while it grows, if it was.
  const followEnd = () => {
    const page = document.scrollingElement;
    if (page.scrollHeight - page.scrollTop - page.clientHeight < 240) page.scrollTop = page.scrollHeight;
  };
  const busy = (is) => {
    $("send").textContent = is ? "Stop" : "Send";
    document.body.classList.toggle("busy", is);
  };

  // ---------------------------------------------------------------- showing

  const showToken = (answer, index) => {
    for (const other of views.values()) if (other !== answer) other.reading?.leave();
    if (answer.reading.held) answer.read(null);
    const choose = running ? null : (row) => branch(answer.column, index, row.token);
    panel.show(kad.panel(answer.reading, index, {href: placeOf(answer, index), choose}), answer.reading.held);
    answer.timeline?.move();
  };
  // A token as an address: the numbers of its turn, of the version, of the column, and its own.
  const placeOf = ({column}, index) => {
    for (const [turn, {versions}] of talk.turns.entries()) {
      const version = versions.findIndex(({columns}) => columns.includes(column));
      if (version >= 0) return `#${[turn, version, versions[version].columns.indexOf(column), index].map((at) => at + 1).join(".")}`;
    }
    return null;
  };
  const unfocus = () => { history.replaceState(null, "", location.pathname); nothing(); };
  const follow = () => {
    const [at, version, column, index] = location.hash.slice(1).split(".").map((number) => Number(number) - 1);
    const turn = talk.turns[at];
    if (!turn?.versions[version]) return;
    turn.shown = version;
    show(turn);
    const reading = views.get(turn.versions[version].columns[column])?.reading;
    if (reading?.tokens[index]) reading.focus(index);
  };
  const read = (column) => views.get(column).read($("view").value === "text" && !views.get(column).element.matches(".running") ? textOf(column) : null);
  const answerOf = (column) => {
    if (!views.has(column)) {
      const answer = new kad.Answer(column, {shown: showToken, link: (from, index) => history.replaceState(null, "", placeOf(from, index))});
      views.set(column, answer);
      answer.running(false);
    }
    return views.get(column);
  };
  const show = (turn) => {
    const {columns} = turn.versions[turn.shown];
    const answers = columns.map(answerOf);
    const element = kad.make("article", {class: "turn"}, kad.make("p", {class: "question"}, questionOf(turn)),
      kad.make("div", {class: "columns"}, ...answers.map((answer) => answer.element)), tools(turn));
    const old = $("talk").children[talk.turns.indexOf(turn)];
    if (old) old.replaceWith(element);
    else $("talk").append(element);
    for (const [column, {reading}] of views) if (!columns.includes(column)) reading?.leave();
    columns.forEach(read);
    for (const {reading} of answers) if (reading && reading.measure !== measure) reading.colorBy(measure);
    preview();
  };
  const tools = (turn) => {
    const button = (text, click, title) => kad.make("button", {type: "button", click, title, class: "tool", "aria-label": text.length === 1 ? title : null}, text);
    const column = shownColumn(turn);
    const row = kad.make("div", {class: "tools"});
    if (turn.versions.length > 1) {
      const step = (by) => () => { turn.shown += by; unfocus(); keep(); show(turn); };
      const [back, on] = [button("‹", step(-1), "The version before"), button("›", step(1), "The next version")];
      [back.disabled, on.disabled] = [turn.shown === 0, turn.shown === turn.versions.length - 1];
      row.append(kad.make("span", {class: "versions"}, back, `${turn.shown + 1} of ${turn.versions.length}`, on));
    }
    if (running) return row;
    row.append(kad.copyButton(() => textOf(column), () => views.get(column).place), button("Edit", () => edit(turn), "Another question in this place: a new version"),
      button("Answer again", () => again(turn, false), "With the rule and the options that are set now"),
      button("Three columns", () => again(turn, true), "Base alone, aligned alone and together"));
    if (!column.done && column.trace?.positions.length) {
      row.append(button("Go on", () => goOn(turn, column, column.trace.positions.map((position) => position.token)), "From where the answer stopped"));
    }
    return row;
  };
  // A question that is written anew, in the field below; null: the field has the next question.
  let edited = null;
  const edit = (turn) => {
    edited = turn;
    $("question").value = turn ? questionOf(turn) : "";
    $("question").focus();
    $("verdict").textContent = turn ? "The new question makes a new version here. Esc leaves it as it was." : "";
  };
  // A conversation from a file. Where it cannot be shown, what was there before stays.
  const openFile = async (file) => {
    const before = {...talk};
    const put = (turns) => {
      views.clear();
      unfocus();
      talk.turns = turns;
      $("talk").replaceChildren();
      talk.turns.forEach(show);
      if (talk.turns.length === 0) $("talk").append(welcome());
    };
    try {
      const saved = JSON.parse(await file.text());
      if (saved.schema !== "kad-conversation/1") throw new Error();
      put(saved.turns);
      keep();
    } catch {
      put(before.turns);
      $("verdict").textContent = `${file.name} is not a conversation that this page saved.`;
    }
  };
  // The rule that is set, on the last answer: who its tokens would have come from.
  const preview = () => {
    const turn = talk.turns.at(-1);
    const reading = turn && views.get(shownColumn(turn))?.reading;
    $("legend").querySelector(".changed").hidden = true;
    $("verdict").textContent = "";
    if (!facts || !reading || running || shownColumn(turn).of !== "composed") return;
    const {rule, value} = talk.settings;
    const same = (rule ? ruleText() : facts.rule) === reading.trace.rule_text;
    const known = rule ? kad.rules[rule]?.tau && [rule, value] : kad.rules[facts.rule_values.rule] && [facts.rule_values.rule, facts.rule_values[kad.rules[facts.rule_values.rule].parameter]];
    reading.decideBy(...(same || !known ? [null, null] : known));
    $("legend").querySelector(".changed").hidden = same || !known;
    $("verdict").textContent = same ? "" : known ? `The last answer under this rule: ${kad.verdict(reading)}` : "Answer again to see this rule.";
  };
  const legend = () => {
    $("legend").replaceChildren(kad.legend(measure, {origins: true, drafts: true}));
    preview();
  };
  const welcome = () => {
    // Those of kad demo: the base model is right and forgets the box, the aligned one is wrong in it.
    const tiny = [["There are 212 maps in the box of Cora. Later 11 of the maps get broken. How many maps are left?", "201"], ["Adam has 72 keys. He gets another 27 from Iris. How many keys are left?", "99"], ["Dan counts 217 coins in the box. Later 21 more coins are added. How many coins are left?", "238"]];
    const others = ["Why is the sky blue?", "What is 17 * 24?", "Write a haiku about autumn."].map((question) => [question, null]);
    const questions = !facts ? [] : facts.name === "tiny" ? tiny : others;
    return kad.make("div", {class: "welcome"}, kad.make("p", {}, "Each token gets the color of the model it came from. Point at a token to see the three distributions. Click it, choose another token in the panel, and the text goes on from there."),
      ...(facts?.name === "tiny" ? [kad.make("p", {}, "This pair of very small models knows word problems with sums and nothing else. The answer should stand in a box:")] : []),
      ...questions.map(([question, expected]) => kad.make("button", {type: "button", click: () => ask(question, expected)}, question)));
  };

  // ---------------------------------------------------------------- the rest of the page

  const rulesOf = (described) => Object.fromEntries(described.map(({name, parameters: [first]}) => {
    const bounded = first && first.min !== null && first.max !== null;
    const plain = bounded ? {parameter: first.name, min: first.min, max: first.max, step: 0.01, start: first.default} : {parameter: null, start: null};
    return [name, kad.rules[name] ?? plain];
  }));
  const addOptions = () => {
    const {sampling} = facts;
    const field = (name, text, attributes) => kad.make("label", {}, text, kad.make("input", {name, type: "number", ...attributes}));
    const select = (name, text, values) => kad.make("label", {}, text, kad.make("select", {name}, ...values.map(([value, said]) => kad.make("option", {value}, said))));
    $("options").querySelector(".options").append(
      field("temperature", "Temperature", {min: 0, step: 0.1, placeholder: sampling.temperature ?? "0"}),
      field("max_tokens", "Most tokens", {min: 1, step: 1, placeholder: sampling.max_new_tokens ?? "512"}),
      field("seed", "Seed", {min: 0, step: 1, placeholder: "random"}),
      select("num_draft_tokens", "Drafts at a time", [["", "as the pair"], ["0", "none"], ["auto", "auto"], ["2", "2"], ["4", "4"], ["8", "8"]]),
      select("thinking", "Thinking", [["", "as the template"], ["on", "on"], ["off", "off"]]),
      kad.make("label", {class: "wide"}, "System message", kad.make("textarea", {name: "system", rows: 1})),
      kad.make("button", {type: "button", class: "wide", click: () => kad.save("conversation.json", "application/json", JSON.stringify({schema: "kad-conversation/1", ...talk}))}, "Save the conversation (JSON)"),
      kad.make("label", {class: "wide"}, "Open a saved conversation", kad.make("input", {type: "file", accept: ".json", change: ({target}) => { if (!running) openFile(target.files[0]); }})));
  };
  // The header: what answers here, or why nothing does.
  const connect = async () => {
    const line = $("pair");
    try {
      facts = await kad.server.pair();
    } catch (error) {
      line.replaceChildren(error.message, kad.make("button", {type: "button", click: () => start()}, "Try again"));
      line.classList.add("problem");
      return false;
    } finally {
      line.classList.remove("waits");
    }
    line.classList.remove("problem");
    const sizes = Object.entries(facts.models).map(([role, name]) => `${role} ${name} (${(facts.parameters[role] / 1e6).toLocaleString("en", {maximumFractionDigits: 1})} M)`);
    line.textContent = [facts.name, ...sizes, kad.ruleWords(facts.rule)].join(" · ");
    return true;
  };
  const start = async () => {
    if (!(await connect()) || controls) return;
    controls = new kad.RuleControls({recorded: facts.rule_values, text: kad.ruleWords(facts.rule), rules: rulesOf(facts.rules), reset: "Reset",
      changed: (rule, value) => { Object.assign(talk.settings, {rule, value}); preview(); keep(); }});
    $("rule").append(controls.element);
    if (talk.settings.rule) controls.set(talk.settings.rule, talk.settings.value);
    addOptions();
    $("send").disabled = false;
    if (talk.turns.length === 0) $("talk").replaceChildren(welcome());
    preview();
    if (early) $("composer").requestSubmit();
  };

  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("question").value.trim();
    if (running) running.abort();
    else if (!facts) {
      early = question !== "";
      $("verdict").textContent = early ? "It is asked as soon as the models are loaded." : "";
    } else if (question) {
      const turn = edited;
      edit(null);
      if (turn) again(turn, turn.versions[turn.shown].columns.length > 1, question);
      else ask(question);
    }
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (!running) $("composer").requestSubmit(); }
    if (event.key === "Escape") running?.abort();
    if (event.key === "Escape" && edited) edit(null);
  });
  $("new").addEventListener("click", () => {
    running?.abort();
    [talk.turns, edited] = [[], null];
    views.clear();
    unfocus();
    keep();
    $("talk").replaceChildren(welcome());
    preview();
    $("question").focus();
  });
  const nothing = () => panel.show([kad.make("p", {class: "nothing"}, "Point at a token to see where it came from.")], false);
  window.addEventListener("pagehide", keep);
  kad.theme($("theme"));
  $("new").before(kad.measureChoice((chosen) => {
    measure = chosen;
    legend();
    for (const {reading} of views.values()) reading?.colorBy(measure);
  }));
  $("options").before(kad.draftsChoice());
  $("view").addEventListener("change", () => [...views.keys()].forEach(read));
  $("options").addEventListener("toggle", () => $("composer").scrollIntoView({block: "end"}));
  $("send").disabled = true;
  legend();
  nothing();
  talk.turns.forEach(show);
  if (talk.turns.length === 0) $("talk").append(welcome());
  window.addEventListener("hashchange", follow);
  follow();
  start();
})();
