// The page of a report: the tables and plots of some runs, and every question with the answers of all methods.
//
// Thousands of questions are shown a page at a time. Texts are of strangers: they become text nodes, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.querySelector("main");
  const onePage = 20;
  const isRight = (mark) => mark >= 0.5;

  const table = ({task, columns, rows}) => kad.make("div", {class: "wide", role: "region", tabindex: "0", "aria-label": `Table of ${task}`},
    kad.make("table", {}, kad.make("caption", {}, task),
      kad.make("thead", {}, kad.make("tr", {}, ...columns.map(({heading, numeric}) => kad.make("th", {scope: "col", class: numeric && "numeric"}, heading)))),
      kad.make("tbody", {}, ...rows.map((cells) => kad.make("tr", {}, ...cells.map((cell, at) => kad.make("td", {class: columns[at].numeric && "numeric"}, cell)))))));

  const results = kad.make("section", {"aria-label": "Results"}, kad.make("h2", {}, "Results"), ...data.tables.map(table),
    kad.make("ul", {class: "notes"}, ...data.notes.map((note) => kad.make("li", {}, note))),
    kad.make("div", {class: "plots"}, ...data.plots.map(({title, source}) => kad.make("figure", {}, kad.make("img", {src: source, alt: `${title}. The table has the numbers.`})))));

  // What is shown: the task, the metric that counts (none: the first of each task), a method (none: any), its mark.
  const wanted = {task: "", metric: "", method: "", mark: "", disagree: false};
  let [found, at] = [[], 0];

  const metricOf = (question) => Math.max(0, data.tasks[question.task].metrics.indexOf(wanted.metric));
  const marksOf = (question, method) => question.answers.filter((answer) => answer.method === method).map((answer) => answer.marks[metricOf(question)]);
  const mean = (marks) => marks.reduce((sum, mark) => sum + mark, 0) / marks.length;
  const disagree = (question) => new Set(data.methods.map((_, method) => marksOf(question, method)).filter((marks) => marks.length).map(mean)).size > 1;
  const matches = (question) => {
    if (wanted.task !== "" && question.task !== Number(wanted.task)) return false;
    if (wanted.disagree && !disagree(question)) return false;
    const answers = wanted.method === "" ? question.answers : question.answers.filter((answer) => answer.method === Number(wanted.method));
    return answers.some((answer) => wanted.mark === "" || isRight(answer.marks[metricOf(question)]) === (wanted.mark === "right"));
  };

  // The text, colored by who wrote it where that is known.
  const text = (question, answer) => {
    const named = {role: "group", tabindex: "0", "aria-label": `Answer of ${data.methods[answer.method].name} to ${question.id}`};
    if (!answer.origins) return kad.make("div", {class: "text plain", ...named}, answer.text);
    const box = kad.make("div", {class: "text", ...named});
    let from = 0;
    for (const [length, share] of answer.origins) {
      box.append(kad.make("span", {class: "token", style: `--share:${share}`}, answer.text.slice(from, from + length)));
      from += length;
    }
    box.append(answer.text.slice(from));
    return box;
  };

  // The command that traces this answer, or why there is none. Every value is quoted, and the question stands after --.
  const command = (question, {method, text}) => {
    const {models, rule, more} = data.methods[method];
    if (rule === null) return [null, "This model answered alone, by its own template: kad trace composes a pair."];
    if (models === null) return [null, "The run does not say where its models are."];
    if (!question.single || !text.trim()) return [null, text.trim() ? "It was asked with examples, which kad trace does not take." : "The answer is empty."];
    const options = [...models, ["rule", rule], ...more, ...(question.system === null ? [] : [["system", data.systems[question.system]]])];
    const words = options.map(([name, value]) => `--${name} ${kad.quoted(String(value))}`);
    const flags = question.raw ? ["--raw"] : ["--no-thinking"];
    const made = kad.pasted([`printf %s ${kad.quoted(text)} | kad trace`, ...words, ...flags, "--text /dev/stdin -o trace.html --", kad.quoted(question.asked)].join(" "));
    return [made, "A control character is in it, which would act when it is pasted."];
  };

  const traced = (question, answer) => {
    const place = kad.make("div");
    const button = kad.make("button", {type: "button", "aria-expanded": "false", click: () => {
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      place.replaceChildren();
      if (open) return;
      const [made, why] = command(question, answer);
      const line = kad.copyable("Trace this answer");
      line.set(made);
      place.append(made === null ? kad.make("p", {class: "note"}, `No command: ${why}`) : line.element);
    }}, "Trace");
    return {button, place};
  };

  const answerBox = (question, answer) => {
    const {metrics} = data.tasks[question.task];
    const marks = metrics.map((metric, index) => {
      const mark = answer.marks[index];
      return kad.make("li", {class: isRight(mark) ? "right" : "wrong"}, `${isRight(mark) ? "✓ right" : "✗ wrong"} (${metric})`);
    });
    const trace = traced(question, answer);
    const facts = [`${answer.tokens} tokens`, ...(answer.finished ? [] : ["not finished"]), ...(answer.sample ? [`sample ${answer.sample + 1}`] : [])];
    return kad.make("div", {class: "answer"}, kad.make("h4", {}, data.methods[answer.method].name), kad.make("ul", {class: "marks"}, ...marks),
      text(question, answer), kad.make("div", {class: "facts-line"}, facts.join(", "), trace.button), trace.place);
  };

  const questionBox = (question) => kad.make("article", {class: "question"},
    kad.make("h3", {}, `${data.tasks[question.task].name} ${question.id}`),
    kad.make("p", {class: "asked"}, question.asked),
    kad.make("p", {class: "expected"}, `Expected: ${question.expected}`),
    kad.make("div", {class: "answers"}, ...question.answers.map((answer) => answerBox(question, answer))));

  const list = kad.make("div", {class: "list"});
  const status = kad.make("span", {role: "status"});
  const pagers = ["above", "below"].map((where) => {
    const move = (step) => () => {
      at += step;
      show();
      if (where === "below") heading.focus();
      heading.scrollIntoView();
    };
    const [back, on] = [kad.make("button", {type: "button", click: move(-1)}, "← Earlier"), kad.make("button", {type: "button", click: move(1)}, "Later →")];
    return {back, on, element: kad.make("div", {class: "pager", role: "group", "aria-label": `Pages, ${where} the questions`}, back, on, where === "above" ? status : "")};
  });

  const show = () => {
    const first = at * onePage;
    const shown = found.slice(first, first + onePage);
    list.replaceChildren(...shown.map(questionBox));
    for (const {back, on} of pagers) [back.disabled, on.disabled] = [at === 0, first + onePage >= found.length];
    const count = (number) => number.toLocaleString("en");
    const all = `${count(data.questions.length)} in all`;
    status.textContent = found.length ? `Questions ${count(first + 1)} to ${count(first + shown.length)} of ${count(found.length)}; ${all}` : `No question is like this; ${all}`;
  };

  const filter = () => {
    [found, at] = [data.questions.filter(matches), 0];
    show();
  };

  const choice = (name, key, options) => {
    const select = kad.make("select", {class: `by-${key}`, change: () => { wanted[key] = select.value; filter(); }}, ...options.map(([value, shown]) => kad.make("option", {value}, shown)));
    return kad.make("label", {}, name, select);
  };
  const metrics = [...new Set(data.tasks.flatMap((task) => task.metrics))];
  const box = kad.make("input", {type: "checkbox", class: "disagree", change: () => { wanted.disagree = box.checked; filter(); }});
  const filters = kad.make("div", {class: "controls filters", role: "group", "aria-label": "Which questions"},
    choice("Task", "task", [["", "all"], ...data.tasks.map((task, index) => [index, task.name])]),
    choice("Marked by", "metric", [["", "the first metric of each task"], ...metrics.map((metric) => [metric, metric])]),
    choice("Method", "method", [["", "any"], ...data.methods.map((method, index) => [index, method.name])]),
    choice("Mark", "mark", [["", "any"], ["right", "right"], ["wrong", "wrong"]]),
    kad.make("label", {class: "check"}, box, "only where methods disagree"));
  const heading = kad.make("h2", {tabindex: "-1"}, "Answers");
  const colored = data.questions.some((question) => question.answers.some((answer) => answer.origins));
  const legend = kad.legend("origin", {origins: true, drafts: false});
  legend.querySelector(".changed").remove();
  page.append(results, kad.make("section", {"aria-label": "Answers"}, heading, filters, colored ? legend : "", pagers[0].element, list, pagers[1].element));
  kad.theme(document.getElementById("theme"));
  document.querySelector("footer").textContent = `kad ${data.version}`;
  filter();
})();
