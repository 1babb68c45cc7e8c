// What a threshold rule would have done at a recorded position. The rules are those of kad/method/rules/threshold.py.

// Each rule: its parameter, the slider's range, and tau from the head of p (falling), its largest entry and q*'s.
/** @type {Record<string, any>} */
kad.rules = {
  dual: {parameter: "threshold", sign: "λ", min: 0.01, max: 1, step: 0.01, start: 0.4, tau: (λ) => λ},
  primal: {parameter: "budget", sign: "b", min: 0, max: 1, step: 0.01, start: 0.9,
    tau: (b, head) => kad.criticalItem(b, head)},
  nudging: {parameter: "threshold", sign: "λ", min: 0.01, max: 1, step: 0.01, start: 0.4,
    tau: (λ, head) => (head[0] >= λ ? 0 : Infinity)},
  confidence_bet: {parameter: "margin", sign: "λ", min: 0, max: 1, step: 0.01, start: 0.2,
    tau: (λ, head, maxQ) => maxQ - λ},
  relative: {parameter: "margin", sign: "δ", min: 0, max: 1, step: 0.01, start: 0, tau: (δ, head) => head[0] - δ},
};

// The first p, by falling p, at which the head holds a mass of 1 - budget; NaN if the recorded head does not.
kad.criticalItem = (budget, head) => {
  if (budget >= 1) return Infinity;
  let mass = 0;
  for (const p of head) {
    mass += p;
    if (mass >= 1 - budget - 1e-6) return p;
  }
  return NaN;
};

// The recorded p of a position by falling p, as far down as none is missing.
kad.head = (position) => position.candidates.map((row) => row[1]).filter((p) => p >= position.floor)
  .sort((a, b) => b - a);

// The decision as recorded: keep is a function of p where the rule has a threshold, else unknown but for the token.
kad.recorded = (position, family) => ({
  known: true, tau: position.tau, alpha: position.deferred_mass, share: position.base_share, pi: position.pi,
  acceptance: position.acceptance,
  rows: position.candidates.map(([token, p, q, pi]) => ({token, p, q, pi,
    kept: family === "product" ? null : kad.keptPart(p, q, pi, position.deferred_mass)})),
});

// k p: what of pi came from p. Where alpha q is all of pi, rounding must not leave a trace of p.
kad.keptPart = (p, q, pi, alpha) => {
  const part = pi - alpha * q;
  return part > 1e-5 * pi ? Math.min(part, p) : 0;
};

// The decision under another rule, from the recorded head of p; known is false where that does not reach far enough.
kad.decide = (position, rule, value) => {
  const head = kad.head(position);
  const maxQ = Math.max(...position.candidates.map((row) => row[2]));
  const tau = kad.rules[rule].tau(value, head, maxQ);
  if (Number.isNaN(tau) || (tau > 0 && tau < position.floor)) return {known: false, tau: null, rows: []};
  const keeps = (p) => p >= tau * (1 - 1e-6);
  const alpha = tau <= 0 ? position.nobody ?? 0 : Math.max(0, 1 - head.filter(keeps).reduce((sum, p) => sum + p, 0));
  const compose = (p, q) => (keeps(p) ? p : 0) + alpha * q;
  const pi = compose(position.p, position.p_aligned);
  const rows = position.candidates.map(([token, p, q]) => ({token, p, q, pi: compose(p, q), kept: keeps(p) ? p : 0}));
  const share = pi > 0 && keeps(position.p) ? position.p / pi : 0;
  return {known: true, tau, alpha, pi, share, acceptance: kad.acceptance(position, rows, tau, alpha), rows};
};

// sum_v min(pi_v, q*_v). A token that is not kept adds alpha q* <= q*; those that are kept are all among the rows. Only
// where everything is kept they are not, and the trace holds the sum (null: it was recorded before there was one).
kad.acceptance = (position, rows, tau, alpha) => {
  if (tau <= 0) return position.nobody ? null : position.overlap ?? null;
  return rows.filter((row) => row.kept > 0).reduce((sum, row) => sum + Math.min(row.pi, row.q) - alpha * row.q, alpha);
};

// The token that greedy decoding takes.
kad.best = (decision) => decision.rows.reduce((a, b) => (b.pi > a.pi ? b : a)).token;

// What the tokens can be colored by. Each measure: its name, its value at a token (null: not recorded), how it is said,
// and how strong its color is, on a fixed scale, so that traces can be compared. Origin has the two colors of its own.
kad.measures = (() => {
  const nats = (full) => ({say: (x) => `${kad.number(x)} nats`, level: (x) => x / full, ends: ["0", `${full} nats`]});
  // A trace of kad 0.1 has no entropy. Where a part of p belongs to no token, neither of the two is known.
  const entropy = (position) => (position.nobody >= 0.0005 ? null : position.entropy ?? null);
  // Where the entropy is there and the divergence is not, that is infinite.
  const divergence = (position) => (entropy(position) === null || position.p_aligned === null ? null : position.divergence ?? Infinity);
  return {
    origin: {name: "origin", sign: null, ends: null, value: (position, decision) => decision.share},
    surprisal: {name: "surprisal of π", sign: "−log π", ...nats(5),
      value: (position, decision) => (decision.pi > 0 ? -Math.log(decision.pi) : Infinity)},
    entropy: {name: "entropy of p", sign: "H(p)", ...nats(4), value: entropy},
    divergence: {name: "KL(p ‖ q*)", sign: "KL(p ‖ q*)", ...nats(8), value: divergence},
    rank: {name: "rank in p", sign: "rank in p", say: (x) => `${x}`, level: (x) => Math.log10(x) / 3, ends: ["1", "1000 or more"],
      value: (position) => position.rank ?? null},
  };
})();
