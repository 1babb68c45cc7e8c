// A trace as a file: the data, a table, a picture. The files are made here; nothing is asked of any server.
kad.save = (name, type, content) => {
  const url = URL.createObjectURL(new Blob([content], {type}));
  const link = kad.make("a", {href: url, download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
};

// One line a token. Its text is a JSON string, so that blanks can be seen and no program takes it for a formula.
kad.csv = (trace) => {
  const columns = ["token", "p", "p_aligned", "pi", "base_share", "aligned_share", "kept", "deferred_mass", "tau", "acceptance", "rank", "entropy", "divergence", "overlap", "nobody", "event", "rejected_draft"];
  const lines = trace.positions.map((position, index) => {
    const text = `"${JSON.stringify(position.text).replace(/"/g, '""')}"`;
    return [index + 1, text, ...columns.map((column) => position[column] ?? "")].join(",");
  });
  return [["position", "text", ...columns].join(","), ...lines].join("\r\n") + "\r\n";
};

kad.files = {
  json: {name: "JSON", title: "The trace: kad trace FILE shows it again", type: "application/json", make: ({trace}) => JSON.stringify({...trace, summary: kad.summary(trace)})},
  csv: {name: "CSV", title: "A table, one line a token", type: "text/csv", make: (reading) => kad.csv(reading.trace)},
  svg: {name: "SVG", title: "A picture of the colored text and its timeline, as they are shown", type: "image/svg+xml", make: (reading, timeline) => kad.picture(reading, timeline)},
};

kad.downloads = (reading, timeline, extra = {}) => kad.make("div", {class: "downloads", role: "group", "aria-label": "Download"}, "Download ",
  ...Object.entries({...kad.files, ...extra}).map(([suffix, file]) => kad.make("button",
    {type: "button", title: file.title, click: () => kad.save(`trace.${suffix}`, file.type, file.make(reading, timeline))}, file.name)));
