// What the page asks of its server, and how an answer comes: as events, each with a JSON object.
kad.server = (() => {
  // With --api-key, the address that the command prints carries the key behind a #. It leaves the address at once.
  const given = location.hash.match(/^#key=(.+)$/);
  if (given) {
    sessionStorage.setItem("kad-key", decodeURIComponent(given[1]));
    history.replaceState(null, "", location.pathname);
  }
  const key = sessionStorage.getItem("kad-key");
  const headers = {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
  const gone = "The server does not answer. Is kad playground still running?";

  const send = async (path, options) => {
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

  const parse = (block) => {
    const field = (name) => block.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
    return [field("event"), JSON.parse(field("data"))];
  };

  // Calls `take` with the events as they come, a few at a time: [["piece", {...}], ...].
  const answer = async (request, signal, take) => {
    const response = await send("/kad/answer", {method: "POST", body: JSON.stringify(request), signal});
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let [rest, last] = ["", null];
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        throw error.name === "AbortError" ? error : new Error("The connection broke before the answer was complete.");
      }
      if (part.done) break;
      const blocks = (rest + part.value).split("\n\n");
      rest = blocks.pop();
      const events = blocks.filter(Boolean).map(parse);
      if (events.length) [last] = events.at(-1);
      take(events);
      if (last === "error") throw new Error(events.at(-1)[1].error.message);
    }
    if (last !== "done") throw new Error("The connection broke before the answer was complete.");
  };

  return {facts: async () => (await send("/kad/model", {})).json(), answer};
})();
