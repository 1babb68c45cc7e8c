// Where the two models disagree most: the positions with the largest KL(p || q*), each a button that jumps there.
kad.disagreements = (reading, jump, most = 8) => {
  const {value, sign} = kad.measures.divergence;
  const first = (position, column) => kad.word(reading.trace, position.candidates.reduce((a, b) => (b[column] > a[column] ? b : a))[0]);
  const found = reading.positions.map((position, index) => ({position, index, value: value(position)}))
    .filter((item) => item.value !== null).sort((a, b) => b.value - a.value || a.index - b.index).slice(0, most);
  const rows = found.map(({position, index, value: x}) => kad.make("li", {}, kad.make("button", {type: "button", click: () => jump(index)},
    kad.make("span", {class: "number"}, index + 1), kad.make("q", {}, kad.label(position.text)), kad.make("span", {class: "number"}, kad.number(x)),
    kad.make("span", {class: "firsts"}, kad.make("var", {}, "p"), ` ${first(position, 1)} `, kad.make("var", {}, "q*"), ` ${first(position, 2)}`))));
  return kad.make("details", {class: "disagreements"}, kad.make("summary", {}, "Largest disagreements"),
    found.length ? kad.make("ol", {}, ...rows) : kad.make("p", {}, "No token of this trace has a known KL(p ‖ q*)."),
    kad.make("p", {class: "note"}, `${sign} in nats, and the first choices of the two models.`));
};
