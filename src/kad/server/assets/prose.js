// The Markdown that models write, as nodes: headings, lists, code, bold, italics. All else stays as it is written, links
// and formulas too; markup of a model is text like any other.
kad.prose = (text) => {
  const inline = (line) => line.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*|\*[^*\s][^*\n]*\*)/).map((part, index) => {
    if (index % 2 === 0) return part;
    const [tag, cut] = part[0] === "`" ? ["code", 1] : part[1] === "*" ? ["strong", 2] : ["em", 1];
    return kad.make(tag, {}, part.slice(cut, -cut));
  });
  const prose = kad.make("div", {class: "prose"});
  // What the next line may continue: a paragraph, a list, or code up to the end of its fence.
  let [open, fence] = [null, null];
  const into = (tag, start = () => kad.make(tag)) => {
    if (open?.localName !== tag) prose.append(open = start());
    return open;
  };
  for (const line of text.split("\n")) {
    const [, marks] = line.match(/^\s*(```+|~~~+)/) ?? [];
    const [, level, title] = line.match(/^(#{1,6}) +(.*)$/) ?? [];
    const [, indent, mark, item] = line.match(/^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/) ?? [];
    if (fence) {
      if (marks?.startsWith(fence)) [open, fence] = [null, null];
      else open.append(`${line}\n`);
    } else if (marks) {
      prose.append(open = kad.make("pre"));
      fence = marks;
    } else if (line.trim() === "") open = null;
    else if (level) {
      prose.append(kad.make(level.length < 3 ? "h3" : "h4", {}, ...inline(title)));
      open = null;
    } else if (mark) {
      const list = into(/\d/.test(mark) ? "ol" : "ul", () => (/\d/.test(mark) ? kad.make("ol", {start: parseInt(mark)}) : kad.make("ul")));
      list.append(kad.make("li", {style: `margin-left:${Math.min(6, indent.length / 2)}em`}, ...inline(item)));
    } else if (open?.localName === "p") open.append("\n", ...inline(line));
    else if (open && /^\s/.test(line)) open.lastElementChild.append("\n", ...inline(line.trim()));
    else prose.append(open = kad.make("p", {}, ...inline(line)));
  }
  return prose;
};
