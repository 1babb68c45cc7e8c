// The page of a trace, or of several side by side.
(() => {
  const traces = JSON.parse(document.getElementById("data").textContent);
  const page = document.querySelector("main");
  const panel = kad.panelPlace(document.querySelector("aside"));
  const views = [];
  const speculated = (trace) => trace.positions.some((position) => position.event);
  const hash = (view, index) => `#${traces.length > 1 ? `${view + 1}.` : ""}${index + 1}`;

  const facts = (trace) => {
    const {generation, models} = trace;
    const summary = kad.summary(trace);
    const drafted = summary.accepted + summary.corrected;
    const how = {given: "given text", generated: generation.do_sample ? "sampled" : "greedy"}[generation.source] ?? generation.source;
    const rows = [["rule", kad.ruleWords(trace.rule_text)], ...Object.entries(models), ["answer", `${summary.tokens} tokens, ${how}`]];
    if (summary.mean_base_share !== null) rows.push(["from base", kad.percent(summary.mean_base_share)]);
    if (summary.mean_deferred_mass !== null) rows.push(["mean α", kad.number(summary.mean_deferred_mass)]);
    rows.push(["mean β", kad.number(summary.mean_acceptance)]);
    if (kad.endedBy(trace)) rows.push(["ended by", kad.endedBy(trace)]);
    if (drafted) rows.push(["drafts accepted", `${summary.accepted} of ${drafted}`]);
    const list = kad.facts(rows);
    list.className = "facts";
    return list;
  };

  const view = (trace, number) => {
    const show = (index) => {
      views.forEach((other) => { if (other.reading !== reading) other.reading.leave(); });
      panel.show(kad.panel(reading, index, {href: hash(number, index)}), reading.held);
      timeline.move();
    };
    // A frame of a notebook has no address of its own.
    const link = (index) => { try { history.replaceState(null, "", hash(number, index)); } catch { /* then there is no link */ } };
    const verdict = kad.make("p", {class: "verdict", role: "status"});
    const command = kad.copyable("Run it again with this rule");
    const recolored = () => {
      const legend = legendOf(reading.measure);
      legend.querySelector(".changed").hidden = !reading.rule;
      element.querySelector(".legend").replaceWith(legend);
      verdict.textContent = kad.verdict(reading);
      command.set(kad.command(reading));
      timeline.draw();
    };
    const legendOf = (measure) => kad.legend(measure, {origins: trace.family !== "product", drafts: speculated(trace)});
    const reading = new kad.Reading(trace, {name: "Tokens of the answer; arrow keys move between them", shown: show, recolored, link});
    const timeline = new kad.Timeline(reading);
    const controls = new kad.RuleControls({recorded: trace.rule, text: `${kad.ruleWords(trace.rule_text)}, as recorded`, changed: (rule, value) => reading.decideBy(rule, value)});
    const element = kad.make("section", {class: "reading", "aria-label": traces.length > 1 ? `Trace ${number + 1}: ${kad.ruleWords(trace.rule_text)}` : "Answer"},
      facts(trace),
      kad.make("details", {class: "prompt"}, kad.make("summary", {}, "Prompt"), kad.make("p", {}, trace.prompt)),
      trace.base_prompt ? kad.make("details", {class: "prompt"}, kad.make("summary", {}, "Prompt of the base model"), kad.make("p", {}, trace.base_prompt)) : "",
      legendOf(reading.measure), reading.element, timeline.element, kad.overrulingLists(reading),
      kad.make("section", {class: "card what-if", "aria-label": "Another rule on this text"},
        kad.make("h2", {}, "Another rule on this text"), controls.element, verdict, command.element,
        kad.make("p", {class: "note"}, "The text is ", kad.make("strong", {}, "not"), " regenerated. From the recorded distributions the slider tells who each token would have come from, given the same text before it. It cannot tell what would have been written instead: from the first token that changes on, a new text needs new distributions.")),
      kad.downloads(reading, timeline));
    return {element, reading, timeline, recolored};
  };

  // Where the texts part; the last of these places, or null where all texts are the same.
  const parting = () => {
    const [{reading: first}, ...others] = views;
    return others.reduce((last, {reading}) => {
      const index = kad.parting(first, reading);
      for (const side of [first, reading]) side.tokens[index]?.classList.add("parting");
      const where = index === null ? "Both texts are the same." : `The texts part at token ${index + 1}.`;
      reading.element.after(kad.make("p", {class: "note parted"}, where));
      return index ?? last;
    }, null);
  };

  const follow = () => {
    const [, number, index] = location.hash.match(/^#(?:(\d+)\.)?(\d+)$/) ?? [];
    const reading = views[Number(number ?? 1) - 1]?.reading;
    if (!reading?.tokens[Number(index) - 1]) return false;
    reading.focus(Number(index) - 1);
    return true;
  };

  kad.theme(document.getElementById("theme"));
  document.querySelector(".brand").append(kad.measureChoice((measure) => views.forEach(({reading}) => reading.colorBy(measure))), ...(traces.some(speculated) ? [kad.draftsChoice()] : []), document.getElementById("theme"));
  traces.forEach((trace, number) => views.push(view(trace, number)));
  page.prepend(kad.make("div", {class: "readings"}, ...views.map(({element}) => element)));
  document.body.classList.toggle("several", traces.length > 1);
  views.forEach(({recolored}) => recolored());
  const parted = parting();
  document.querySelector("footer").textContent = `kad ${traces[0].kad_version} · ${traces[0].schema}`;
  window.addEventListener("hashchange", follow);
  if (!follow()) views[0].reading.show(Math.min(parted ?? kad.deciding(views[0].reading), views[0].reading.length - 1), {scroll: false});
})();
