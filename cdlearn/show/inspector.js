// The token inspector, one ES module for three places: the widget in a notebook, the handout, the site.
//
// A trace arrives as bytes (pack.py). The formulas carry the names of scores, rescore.py and flips.py and compute in
// float64 what those compute. The state is one object; `change` is the only function that replaces it; drawing is
// functions of it that mend what is there, so that the focus stays. Text enters the page by textContent only.

// ---------------------------------------------------------------- a trace from its bytes
const TYPES = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u2: Uint16Array };
export async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const start = 4 + new DataView(raw.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(raw.subarray(4, start)));
  const trace = { ...header, parts: {}, normalisers: {}, ranks: {}, entropy: {}, values: {}, memo: new Map() };
  for (const [name, [type, shape, at]] of Object.entries(header.arrays)) {
    const [group, key] = name.split(/\.(.*)/s);
    const count = shape.reduce((a, b) => a * b, 1), Kind = TYPES[type];
    const values = gathered(raw.subarray(start + at, start + at + count * Kind.BYTES_PER_ELEMENT), count, Kind);
    if (name === "parts.expert" && type === "f4") new Int32Array(values.buffer).forEach((_, k, bits) => { bits[k] += k ? bits[k - 1] : 0; });
    (key === undefined ? trace : trace[group])[key ?? group] = values;
  }
  return trace;
}

function gathered(planes, count, Kind) { // the first bytes of all numbers, then all second ones: see pack.py
  const size = Kind.BYTES_PER_ELEMENT, bytes = new Uint8Array(count * size);
  for (let plane = 0; plane < size; plane++)
    for (let k = 0; k < count; k++) bytes[k * size + plane] = planes[plane * count + k];
  return new Kind(bytes.buffer);
}

function once(trace, key, make) { // what does not change is computed once
  if (!trace.memo.has(key)) trace.memo.set(key, make());
  return trace.memo.get(key);
}

// ---------------------------------------------------------------- the formulas: rescore.py
const FLOOR = -1e5, NEVER = -Infinity;
const formOf = (trace, settings) => trace.forms.find(form => form.knob === null || form.knob in settings);
export function newSettings(trace, changes) {
  const knobs = trace.forms.map(form => form.knob).filter(knob => knob !== null);
  const settings = { ...trace.settings };
  if (knobs.some(knob => knob in changes)) for (const knob of knobs) delete settings[knob];
  Object.assign(settings, changes);
  settings.alpha = settings.alpha || null; // 0 is no mask
  return settings;
}

const highest = numbers => numbers.reduce((top, x) => (x > top ? x : top), NEVER);
const strengthIn = (trace, settings) => settings[formOf(trace, settings).knob] ?? 1;
/** A part's logits and normalisers: DoLa's amateur is the layer that the settings name. */
function part(trace, name, settings) {
  if (name !== "amateur" || settings.layer === undefined)
    return { logits: trace.parts[name], normaliser: trace.normalisers[name] };
  const { positions: P, width: W } = trace, layers = trace.settings.layers, at = layers.indexOf(settings.layer);
  return once(trace, `layer ${at}`, () => {
    const own = { logits: new Float64Array(P * W), normaliser: new Float64Array(P) };
    for (let p = 0; p < P; p++) {
      const from = (p * layers.length + at) * W;
      own.logits.set(trace.parts.layers.subarray(from, from + W), p * W);
      own.normaliser[p] = trace.normalisers.layers[p * layers.length + at];
    }
    return own;
  });
}

/** logsumexp of the logits / tau over the vocabulary, or over the candidates: the same for a position's candidates. */
function temperedNormaliser(trace, name, tau) {
  if (tau === 1) return trace.normalisers[name];
  if (tau === (trace.settings.amateur_temperature ?? 1) && trace.tempered) return trace.tempered;
  const { positions: P, width: W } = trace, logits = trace.parts[name], found = new Float64Array(P);
  for (let p = 0; p < P; p++) {
    const own = logits.subarray(p * W, p * W + W - 1), top = highest(own) / tau;
    found[p] = top + Math.log(own.reduce((sum, x) => sum + Math.exp(x / tau - top), 0));
  }
  return found;
}

/** What a form sums, for one part: its logits or log-probabilities, floored as scores does. */
function valuesOf(trace, name, settings, form, raw) {
  const { positions: P, width: W } = trace, found = new Float64Array(P * W);
  const { logits, normaliser } = part(trace, name, settings), tempered = !raw && name === form.tempered;
  const tau = tempered ? settings.amateur_temperature ?? 1 : 1;
  const less = tempered ? temperedNormaliser(trace, name, tau) : normaliser;
  for (let p = 0; p < P; p++) {
    const low = raw ? highest(logits.subarray(p * W, p * W + W)) + FLOOR : FLOOR;
    for (let k = p * W; k < p * W + W; k++) found[k] = Math.max(raw ? logits[k] : logits[k] / tau - less[p], low);
  }
  return found;
}

/** Every candidate's line, score = over - t * against with t the knob. */
export function lines(trace, settings) {
  const form = formOf(trace, settings), raw = form.raw ?? settings.alpha === null;
  const key = `lines ${trace.forms.indexOf(form)} ${raw} ${settings.amateur_temperature} ${settings.layer}`;
  for (const old of trace.memo.keys()) if (old.startsWith("lines ") && old !== key) trace.memo.delete(old);
  return once(trace, key, () => {
    const count = trace.positions * trace.width, over = new Float64Array(count), against = new Float64Array(count);
    for (const [total, weights] of [[over, form.over], [against, form.against]])
      for (const [name, weight] of Object.entries(weights)) {
        const values = valuesOf(trace, name, settings, form, raw);
        for (let k = 0; k < count; k++) total[k] += weight * values[k];
      }
    for (const [name, weight] of Object.entries(form.over)) {
      const { logits } = part(trace, name, settings);
      if (weight > 0) for (let k = 0; k < count; k++) if (logits[k] === NEVER) over[k] = NEVER;
    }
    return { over, against };
  });
}

const isKept = (logit, cut) => logit >= cut && logit > NEVER;
/** The least expert logit that is kept at a position, with the very rounding of scores. */
function cutoff(trace, settings, p) {
  const { expert } = trace.parts, count = trace.width - 1, at = p * trace.width, k = settings.top_k ?? 0;
  let cut = NEVER;
  if (settings.alpha !== null) {
    const log = Math.log(settings.alpha);
    cut = expert instanceof Float32Array ? Math.fround(expert[at] + Math.fround(log)) : expert[at] + log;
  }
  return k > 0 && (k < count || count !== trace.vocab_size) ? Math.max(cut, expert[at + Math.min(k, count) - 1]) : cut;
}

export function truncated(trace, settings, p) {
  const count = trace.width - 1, last = trace.parts.expert[p * trace.width + count - 1];
  return trace.forms.length > 0 && count !== trace.vocab_size && isKept(last, cutoff(trace, settings, p));
}

/** For a repetition penalty: whether a candidate is in the prompt or the text before its position. */
function seen(trace, k, p) {
  const first = once(trace, "seen", () => {
    const text = [...trace.prompt, ...trace.recorded], found = new Int32Array(trace.texts.length).fill(text.length);
    for (let at = text.length - 1; at >= 0; at--) found[text[at]] = at;
    return found;
  });
  return first[trace.candidates[k]] < p + trace.prompt.length;
}

function penalized(trace, k, p, score) {
  const penalty = trace.settings.repetition_penalty ?? 1;
  if (penalty === 1 || !seen(trace, k, p)) return score;
  return score > 0 ? score / penalty : score * penalty;
}

/** The scores of a position, NEVER where masked, and the column of greedy's pick: among equals the lowest id. */
export function decide(trace, settings, p) {
  const { over, against } = lines(trace, settings), t = strengthIn(trace, settings), cut = cutoff(trace, settings, p);
  const { width: W, candidates, parts: { expert } } = trace, scores = new Float64Array(W);
  let best = 0, top = NEVER;
  for (let c = 0, k = p * W; c < W; c++, k++) {
    scores[c] = isKept(expert[k], cut) ? over[k] - t * against[k] : NEVER;
    const score = penalized(trace, k, p, scores[c]);
    if (score > top || (score === top && candidates[k] < candidates[p * W + best])) [best, top] = [c, score];
  }
  return { scores, best };
}

/** Greedy's pick at every position, as numbers into the texts. */
export function picks(trace, settings) {
  const at = p => p * trace.width + decide(trace, settings, p).best;
  return Array.from({ length: trace.positions }, (_, p) => trace.candidates[at(p)]);
}

/** The first position where greedy picks another token than at the recorded settings; -1: nowhere. */
export function firstChange(trace, settings) {
  const ours = once(trace, "picks", () => picks(trace, newSettings(trace, {})));
  return picks(trace, settings).findIndex((pick, p) => pick !== ours[p]);
}

// ---------------------------------------------------------------- where picks flip: flips.py
/** The highest of the lines a - t * b, from low to high: [where it takes over, its index], in order of t. */
function envelope(a, b, low, high) {
  let here = 0;
  for (let k = 1; k < a.length; k++) {
    const lead = a[k] - low * b[k] - (a[here] - low * b[here]);
    if (lead > 0 || (lead === 0 && b[k] < b[here])) here = k;
  }
  let found = [[low, here]];
  for (;;) {
    let at = Infinity, next = -1;
    for (let k = 0; k < a.length; k++) {
      const gain = b[here] - b[k], meet = gain > 0 ? (a[here] - a[k]) / gain : Infinity;
      if (meet < at || (meet === at && next >= 0 && b[k] < b[next])) [at, next] = [meet, k];
    }
    if (!(at < high)) return found;
    const start = Math.max(at, low);
    found = [...found.filter(([from]) => from < start), [start, next]];
    here = next;
  }
}

/** The kept candidates of a position, each token once, the lowest id first. */
function keptColumns(trace, settings, p) {
  const cut = cutoff(trace, settings, p), { width: W, candidates, parts: { expert } } = trace, columns = new Map();
  for (let c = 0, k = p * W; c < W; c++, k++)
    if (isKept(expert[k], cut)) columns.set(candidates[k], c);
  return [...columns].sort(([left], [right]) => left - right).map(([, column]) => column);
}

/** Which token wins over which stretch of the knob: [{start, stop, column}]. */
export function strengthSpans(trace, settings, p) {
  const { over, against } = lines(trace, settings), columns = keptColumns(trace, settings, p), at = p * trace.width;
  const a = columns.map(c => over[at + c]), b = columns.map(c => against[at + c]);
  const penalty = trace.settings.repetition_penalty ?? 1;
  const bent = columns.map(c => penalty !== 1 && seen(trace, at + c, p));
  // a penalty bends the line of a token already in the text where its score changes sign
  const bends = columns.map((_, k) => (bent[k] ? a[k] / b[k] : -1)).filter(t => t > 0 && t < Infinity);
  const edges = [0, ...[...new Set(bends)].sort((left, right) => left - right), Infinity];
  const found = [];
  for (let e = 0; e + 1 < edges.length; e++) {
    const [low, high] = [edges[e], edges[e + 1]], inside = high < Infinity ? (low + high) / 2 : low + 1;
    const factor = a.map((_, k) => (!bent[k] ? 1 : a[k] - inside * b[k] > 0 ? 1 / penalty : penalty));
    for (const step of envelope(a.map((x, k) => x * factor[k]), b.map((x, k) => x * factor[k]), low, high))
      if (!found.length || step[1] !== found.at(-1)[1]) found.push(step);
  }
  const spans = found.map(([start, k], n) => ({ start, stop: found[n + 1]?.[0] ?? Infinity, column: columns[k] }));
  return spans.filter(span => span.start < span.stop);
}

/** The winner among what the mask lets in, from all recorded candidates down to the expert's best alone. */
export function alphaSpans(trace, settings, p) {
  const { over, against } = lines(trace, settings), t = strengthIn(trace, settings), open = { ...settings, alpha: null };
  const { width: W, candidates, parts: { expert } } = trace, at = p * W, cut = cutoff(trace, open, p);
  let found = [], ratio = 0;
  for (let c = 0, k = at; c < W - 1; c++, k++) {
    ratio = Math.exp(expert[k] - expert[at]); // a token is kept while alpha <= its ratio
    if (!isKept(expert[k], cut) || ratio === 0) break;
    const score = penalized(trace, k, p, over[k] - t * against[k]), best = found.at(-1);
    if (!best || score > best.score || (score === best.score && candidates[k] < candidates[at + best.column]))
      found = [...found.filter(step => step.stop > ratio), { stop: ratio, column: c, score }];
  }
  const last = truncated(trace, open, p) ? Math.exp(expert[at + W - 2] - expert[at]) : 0;
  const spans = found.map((step, n) => ({ start: found[n + 1]?.stop ?? last, stop: step.stop, column: step.column }));
  return spans.filter(span => span.start < span.stop).reverse();
}

// ---------------------------------------------------------------- in words
const number = x => (x !== 0 && Math.abs(x) < 0.001 ? "<0.001" : String(Number(x.toPrecision(2))));
const chance = x => (x < 0.001 ? "<0.001" : x.toFixed(x < 0.01 ? 3 : 2));
const textAt = (trace, p, column) => trace.texts[trace.candidates[p * trace.width + column]];
/** A candidate's probability with a part; undefined without that part. */
function probability(trace, name, p, column, settings) {
  if (!(name in trace.parts)) return undefined;
  const { logits, normaliser } = part(trace, name, settings);
  return Math.exp(logits[p * trace.width + column] - normaliser[p]);
}

function opinions(trace, settings, p, column) {
  const token = textAt(trace, p, column);
  const [ours, theirs] = ["expert", "amateur"].map(name => probability(trace, name, p, column, settings));
  if (theirs === undefined) return `The expert gives ${token} ${chance(ours)}.`;
  const both = `${chance(ours)}, ${chance(theirs)}`;
  if (theirs < ours / 4) return `Only the expert knows ${token} (${chance(ours)} against ${chance(theirs)}).`;
  if (theirs > ours * 2) return `The amateur likes ${token} more than the expert does (${both}).`;
  return ours < 0.05 ? `Neither gives ${token} much (${both}).` : `Both like ${token} (${both}).`;
}

function outcome(trace, settings, p, best) {
  const knob = formOf(trace, settings).knob, winner = textAt(trace, p, best), id = trace.candidates[p * trace.width + best];
  const layer = settings.layer ?? trace.premature_layer?.[p];
  if (!knob) return layer === undefined ? `${winner} wins.` : `With layer ${layer} contrasted, ${winner} wins.`;
  const spans = strengthSpans(trace, settings, p);
  const at = spans.findIndex(span => trace.candidates[p * trace.width + span.column] === id);
  const would = [];
  if (at > 0) would.push(`below ${number(spans[at].start)} ${textAt(trace, p, spans[at - 1].column)} would`);
  if (at >= 0 && at + 1 < spans.length)
    would.push(`from ${number(spans[at].stop)} ${textAt(trace, p, spans[at + 1].column)} would`);
  if (!would.length) return `${winner} wins at every ${knob}.`;
  return `At ${knob} ${number(strengthIn(trace, settings))} ${winner} wins; ${would.join(", ")}.`;
}

/** One or two sentences that say what happened at a position. */
export function sentence(trace, settings, p) {
  const said = [opinions(trace, settings, p, 0)], chosen = trace.recorded[p];
  if (!trace.forms.length) {
    if (chosen !== trace.candidates[p * trace.width]) said.push(opinions(trace, settings, p, trace.width - 1));
    return [...said, `The text has ${trace.texts[chosen]}.`].join(" ");
  }
  const { best } = decide(trace, settings, p), id = trace.candidates[p * trace.width + best];
  if (id !== trace.candidates[p * trace.width]) said.push(opinions(trace, settings, p, best));
  said.push(outcome(trace, settings, p, best));
  const spans = alphaSpans(trace, settings, p);
  const at = spans.findIndex(span => trace.candidates[p * trace.width + span.column] === id);
  if (settings.alpha !== null && at > 0 && spans[at - 1].stop >= 1e-4)
    said.push(`The mask keeps out ${textAt(trace, p, spans[at - 1].column)}: with alpha ${Number(spans[at - 1].stop.toPrecision(2))} it would win.`);
  if (id !== chosen) said.push(`The text has ${trace.texts[chosen]}.`);
  if (truncated(trace, settings, p)) said.push("More tokens are kept than recorded here: another could win.");
  return said.join(" ");
}

// ---------------------------------------------------------------- drawing: small things
/** An element; properties by name, everything else as attributes. */
function h(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  if (["button", "input", "select"].includes(tag)) node.dataset.lmSuppressShortcuts = "true"; // keys are ours in JupyterLab
  for (const [name, value] of Object.entries(given)) {
    if (name in node && name !== "role") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** As many children as items, after the first few: those that are there are mended, so that the focus stays where it is. */
function fill(parent, items, make, mend, after = 0) {
  const had = parent.contains(parent.getRootNode().activeElement);
  while (parent.children.length > items.length + after) parent.lastChild.remove();
  items.forEach((item, k) => mend(parent.children[k + after] ?? parent.appendChild(make()), item, k));
  if (had && !parent.contains(parent.getRootNode().activeElement)) parent.lastElementChild?.querySelector("button")?.focus();
}

const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const show = (node, shown) => { node.hidden = !shown; };
const marks = (node, names) => Object.entries(names).forEach(([name, on]) => node.classList.toggle(name, Boolean(on)));
const chip = () => h("span", {}, h("button", { type: "button", className: "token", tabIndex: -1 }));
/** A token of a strip: its text, its position, its looks; a drawn line break breaks the line. */
function mendChip(cell, text, position, looks, inReach) {
  const button = cell.firstChild;
  cell.className = text.includes("\u21b5") ? "line" : "";
  setText(button, text);
  button.dataset.position = position;
  button.tabIndex = inReach ? 0 : -1;
  marks(button, looks);
  return button;
}

/** Blue above 0, orange below, as much of it as the share says; the theme has the two colours. */
function tint(node, share) {
  const colour = share >= 0 ? "--more" : "--less", percent = Math.min(100, Math.round(Math.abs(share) * 100));
  node.style.background = percent ? `color-mix(in srgb, var(${colour}) ${percent}%, var(--paper))` : "";
}

// ---------------------------------------------------------------- drawing: the panes
function drawText(app) {
  const { trace, state, ui } = app, values = trace.values[state.metric] ?? [];
  const largest = once(trace, `largest ${state.metric}`, () => highest([0, ...values].filter(Number.isFinite).map(Math.abs))) || 1;
  const drawn = `${state.version} ${state.metric}`;
  if (ui.text.dataset.drawn !== drawn) { // only another text or colour touches every token
    ui.text.dataset.drawn = drawn;
    fill(ui.tokens, trace.recorded, chip, (cell, id, p) => {
      const button = mendChip(cell, trace.texts[id], p, { moved: (trace.ranks.expert?.[p] ?? 1) > 1 }, false);
      button.setAttribute("aria-pressed", "false");
      tint(button, Number.isFinite(values[p]) ? values[p] / largest : 0);
    });
    const own = app.traces[0].prompt.length, before = trace.prompt.slice(0, own).slice(-120);
    setText(ui.prompt, (own > before.length ? "\u2026" : "") + before.map(id => trace.texts[id]).join("").replaceAll("\u2423", " "));
    setText(ui.written, trace.prompt.slice(own).map(id => trace.texts[id]).join(""));
    const low = values.some(x => x < 0), legend = [low ? number(-largest) : "0", "", number(largest), trace.metrics[state.metric] ?? ""];
    [...ui.legend.children].forEach((part, k) => setText(part, legend[k]));
    marks(ui.legend.children[1], { both: low });
  }
  for (const button of [ui.tokens.querySelector('[aria-pressed="true"]'), ui.tokens.children[state.position].firstChild]) {
    const here = button?.dataset.position === String(state.position);
    button?.setAttribute("aria-pressed", String(here));
    if (button) button.tabIndex = here ? 0 : -1;
  }
  if (state.playing || ui.tokens.querySelector(".later"))
    [...ui.tokens.children].forEach((cell, p) => cell.firstChild.classList.toggle("later", state.playing && p > state.position));
}

/** A token's numbers in one line: what hovering or focusing it shows. */
function drawAbout(app) {
  const { trace, state, ui } = app, p = +(app.hover ?? state.position), W = trace.width;
  const facts = [`position ${p}`, `${trace.texts[trace.recorded[p]]}`];
  for (const name of ["expert", "amateur"].filter(name => name in trace.parts)) {
    const rank = trace.ranks[name]?.[p];
    const column = trace.candidates.subarray(p * W, p * W + W).indexOf(trace.recorded[p]);
    const likely = column < 0 ? "" : chance(probability(trace, name, p, column, state.settings));
    facts.push(`${name} ${likely}${rank ? `, rank ${rank}` : ""}`);
  }
  if (trace.entropy.expert) facts.push(`expert's entropy ${number(trace.entropy.expert[p])} nats`);
  const value = trace.values[state.metric]?.[p];
  if (Number.isFinite(value)) facts.push(`${state.metric} ${value.toFixed(2)}`);
  setText(ui.about, facts.join(" \u00b7 "));
}

/** The candidates to show: the expert's best, and the text's and greedy's token where they are not among them. */
function rowsOf(app, decided) {
  const { trace, state } = app, W = trace.width, at = state.position * W, found = new Map();
  for (const c of [...Array(Math.min(state.rows, W - 1)).keys(), decided.best, W - 1])
    if (!found.has(trace.candidates[at + c])) found.set(trace.candidates[at + c], c);
  return [...found.values()];
}

function drawStep(app) {
  const { trace, state, ui } = app, p = state.position, W = trace.width, settings = newSettings(trace, state.settings);
  const plain = !trace.forms.length;
  const decided = plain ? { scores: null, best: W - 1 } : decide(trace, settings, p);
  const names = ["expert", "amateur"].filter(name => name in trace.parts), columns = rowsOf(app, decided);
  const chances = columns.map(c => names.map(name => probability(trace, name, p, c, settings)));
  const widest = Math.max(...chances.flat(), 1e-12);
  const finite = decided.scores ? columns.map(c => decided.scores[c]).filter(x => x > NEVER) : [];
  const high = highest(finite), low = -highest(finite.map(x => -x)), room = 1.1 * (high - low) || 1; // a bar is a lead
  const cut = settings.alpha === null ? 0 : settings.alpha * probability(trace, "expert", p, 0, settings);
  const chosen = trace.candidates[p * W + decided.best];
  fill(ui.head, ["token", ...names, ...(plain ? [] : ["score"])], () => h("th", { scope: "col" }), setText);
  app.columns = columns;
  fill(ui.rows, columns, () => h("tr"), (row, c, k) => {
    const id = trace.candidates[p * W + c], score = decided.scores?.[c], masked = score === NEVER;
    if (!row.firstChild) row.append(h("td", { className: "name" }, h("button", { type: "button", className: "candidate" }), h("span", { className: "mark" })));
    const [button, mark] = row.firstChild.children;
    setText(button, trace.texts[id]);
    button.tabIndex = k === state.candidate ? 0 : -1;
    button.dataset.candidate = k;
    button.setAttribute("aria-pressed", String(k === state.candidate));
    marks(row, { masked, chosen: id === chosen, selected: k === state.candidate });
    const word = [id === chosen ? "\u25c2 chosen" : "", id === trace.recorded[p] && id !== chosen ? "the text's" : "", masked ? "masked" : ""];
    setText(mark, word.filter(Boolean).join(", "));
    const cells = names.map((name, n) => ({ kind: name, share: chances[k][n] / widest, text: chance(chances[k][n]), line: name === "expert" && cut ? cut / widest : null }));
    const lead = masked ? 0 : 1 - (high - score) / room;
    if (!plain) cells.push({ kind: "score", share: lead, text: masked ? "" : score.toFixed(2), line: null });
    fill(row, cells, () => h("td", {}, h("span", { className: "number" }), h("span", { className: "meter" }, h("i"), h("b"))), drawBar, 1);
  });
  setText(ui.more, `show ${state.rows < 32 ? 32 : W - 1} candidates`);
  show(ui.more, state.rows < W - 1);
  setText(ui.said, sentence(trace, settings, p));
  const under = settings.alpha === null ? "No mask." : `Line: the mask's threshold, alpha ${number(settings.alpha)} times the expert's best.`;
  setText(ui.key, plain ? "" : under);
}

function drawBar(cell, { kind, share, text, line }) {
  const [figure, track] = cell.children, [bar, threshold] = track.children;
  cell.className = kind;
  setText(figure, text);
  bar.style.width = `${100 * share}%`;
  show(threshold, line !== null);
  if (line !== null) threshold.style.left = `${Math.min(100, 100 * line)}%`;
}

function drawLayers(app) {
  const { trace, state, ui } = app, layers = trace.divergences ? trace.settings.layers : [];
  show(ui.layers, layers.length > 0);
  if (!layers.length) return;
  const count = layers.length, first = Math.max(0, Math.min(state.position - 12, trace.positions - 24));
  const shown = [...Array(Math.min(24, trace.positions)).keys()].map(k => first + k);
  const largest = once(trace, "divergence", () => highest(trace.divergences)) || 1;
  const order = layers.map((layer, at) => ({ layer, at })).sort((a, b) => b.layer - a.layer);
  fill(ui.layerRows, order, () => h("tr", {}, h("th", { scope: "row" })), (row, { layer, at }) => {
    setText(row.firstChild, `layer ${layer}`);
    fill(row, shown, () => h("td", {}, h("button", { type: "button", className: "heat" })), ({ firstChild: button }, p) => {
      const value = trace.divergences[p * count + at], here = (state.settings.layer ?? trace.premature_layer[p]) === layer;
      Object.assign(button.dataset, { position: p, layer });
      tint(button, Math.sqrt(value / largest));
      marks(button, { used: here, here: p === state.position });
      button.setAttribute("aria-pressed", String(here));
      button.setAttribute("aria-label", `layer ${layer}, position ${p}: ${number(value)} nats`);
      button.title = `layer ${layer}, ${trace.texts[trace.recorded[p]]}: ${number(value)} nats`;
    }, 1);
  });
  fill(ui.layerFoot, [0, ...shown], () => h("td"), (cell, p, k) => setText(cell, k ? trace.texts[trace.recorded[p]] : ""));
}

const MARKS = { accepted: "\u2713", rejected: "\u2717", dropped: "", residual: "\u2192", bonus: "+" };
function chipsOf(trace, round) {
  const chips = round.draft.map((id, k) => {
    const kind = k < round.accepted ? "accepted" : k > round.accepted || round.next_kind !== "residual" ? "dropped" : "rejected";
    return { id, kind, chance: kind === "dropped" ? null : round.accept_probability[k], u: kind === "dropped" || !round.u ? null : round.u[k], position: round.position + k };
  });
  if (round.next !== null) chips.push({ id: round.next, kind: round.next_kind, chance: null, u: null, position: round.position + round.accepted });
  return chips;
}

function drawRounds(app) {
  const { trace, state, ui } = app, rounds = trace.rounds;
  show(ui.rounds, rounds.length > 0);
  if (!rounds.length) return;
  const sum = of => rounds.reduce((total, round) => total + of(round), 0);
  const drafted = sum(r => r.draft.length), accepted = sum(r => r.accepted), made = accepted + sum(r => (r.next === null ? 0 : 1));
  setText(ui.roundsSaid, `${made} tokens in ${rounds.length} passes of the target: ${made - rounds.length} passes saved. ${accepted} of ${drafted} drafted tokens accepted.`);
  const here = Math.max(0, rounds.findLastIndex(round => round.position <= state.position));
  const first = Math.max(0, Math.min(here - 20, rounds.length - 40)); // what is far away is not drawn
  fill(ui.roundRows, rounds.slice(first, first + 40), () => h("li", {}, h("span", { className: "round" }), h("span")), (row, round, k) => {
    setText(row.firstChild, `round ${round.round}`);
    marks(row, { here: first + k === here });
    fill(row.lastChild, chipsOf(trace, round), () => h("button", { type: "button", className: "chip" }, h("span"), h("span", { className: "odds" }, h("i"), h("b"))), drawChip(trace));
  });
}

const drawChip = trace => (button, { id, kind, chance, u, position }) => {
  const [label, odds] = button.children, known = chance !== null;
  button.className = `chip ${kind}`;
  button.dataset.position = Math.min(position, trace.positions - 1);
  setText(label, `${MARKS[kind]} ${trace.texts[id]}`);
  show(odds, known);
  show(odds.lastChild, u !== null);
  button.title = kind + (known ? `: min(1, p/q) ${number(chance)}` : "") + (u === null ? "" : `, u ${number(u)}`);
  button.setAttribute("aria-label", `${trace.texts[id]}, ${button.title}`);
  odds.firstChild.style.width = `${100 * chance}%`;
  odds.lastChild.style.left = `${100 * u}%`;
};

/** Another text beside this one; the token where they part is marked. */
function drawOther(app) {
  const { state, ui, trace } = app, other = app.traces[state.other];
  show(ui.other, other !== undefined && other !== trace);
  if (ui.other.hidden) return;
  const texts = t => t.recorded.map(id => t.texts[id]), [ours, theirs] = [texts(trace), texts(other)];
  let parts = ours.findIndex((text, k) => text !== theirs[k]);
  if (parts < 0 && theirs.length > ours.length) parts = ours.length;
  setText(ui.otherSaid, `\u201c${app.names[state.other]}\u201d ${parts < 0 ? "is the same text." : `parts from this text at position ${parts}:`}`);
  fill(ui.otherTokens, theirs, chip, (cell, text, p) => {
    const button = mendChip(cell, text, p, { change: p === parts, grey: parts >= 0 && p > parts }, p === state.position);
    button.setAttribute("aria-pressed", String(p === state.position));
  });
}

// ---------------------------------------------------------------- drawing: the controls
const SCALES = { // how a setting lies on its slider: from, to, and the way back
  alpha: { low: -4, high: 0, to: x => (x ? Math.max(-4, Math.log10(x)) : -4), from: s => (s <= -4 ? 0 : 10 ** s) },
  amateur_temperature: { low: 0.1, high: 3, to: x => x, from: s => s },
};
const LABELS = { alpha: "alpha", amateur_temperature: "amateur temperature" };
const knobScale = recorded => ({ low: 0, high: Math.max(3, Math.ceil(1.5 * recorded)), to: x => x, from: s => s });
const scaleOf = (trace, name) => SCALES[name] ?? knobScale(trace.settings[name] ?? 1);

const valueOf = (trace, state, name) => newSettings(trace, state.settings)[name] ?? (name === "alpha" ? 0 : 1);
function makeControl(app, name) {
  const label = LABELS[name] ?? name, id = `${app.id}-${name}`;
  const box = h("input", { type: "number", id, min: 0, step: "any", autocomplete: "off" });
  const slider = h("input", { type: "range", step: 0.01, "aria-label": `${label}, slider` });
  const row = h("div", { className: "control" }, h("label", { htmlFor: id, textContent: label }), box,
    h("div", { className: "track" }, h("div", { className: "spans", role: "group", "aria-label": `who wins at which ${label}` }), slider));
  row.dataset.name = name;
  slider.oninput = () => turn(app, name, scaleOf(app.trace, name).from(+slider.value));
  box.onchange = box.onkeydown = event => (event.key ?? "Enter") === "Enter" && typed(app, name, box); // JupyterLab eats Enter
  return row;
}

function drawControls(app) {
  const { trace, state, ui } = app, names = trace.controls.filter(name => name !== "layer");
  if (ui.controls.dataset.names !== names.join()) {
    ui.controls.dataset.names = names.join();
    ui.controls.replaceChildren(...names.map(name => makeControl(app, name)));
  }
  show(ui.reset, Object.keys(state.settings).length > 0);
  for (const row of ui.controls.children) {
    const name = row.dataset.name, scale = scaleOf(trace, name), value = valueOf(trace, state, name);
    const [, box, track] = row.children, [spans, slider] = track.children;
    Object.assign(slider, { min: scale.low, max: scale.high, value: scale.to(value) });
    slider.setAttribute("aria-valuetext", name === "alpha" && !value ? "no mask" : number(value));
    if (app.root.getRootNode().activeElement !== box) box.value = Number(value.toPrecision(6));
    if (name !== "amateur_temperature") drawSpans(app, name, scale, spans);
  }
}

/** Under a slider: who wins where, as buttons; their edges are the flip points. */
function drawSpans(app, name, scale, parent) {
  const { trace, state } = app, settings = newSettings(trace, state.settings), p = state.position;
  const found = name === "alpha" ? alphaSpans(trace, settings, p) : strengthSpans(trace, settings, p);
  const share = x => Math.max(0, Math.min(1, (scale.to(x) - scale.low) / (scale.high - scale.low)));
  const spans = found.map(span => ({ ...span, left: share(span.start), right: share(span.stop === Infinity ? 1e9 : span.stop) }));
  const shown = spans.filter(span => span.right > span.left), decided = decide(trace, settings, p).best;
  const winner = trace.candidates[p * trace.width + decided];
  fill(parent, shown, () => h("button", { type: "button" }), (button, span) => {
    const token = textAt(trace, p, span.column), stop = span.stop === Infinity ? "on" : `to ${number(span.stop)}`;
    setText(button, token);
    button.title = `${token} wins from ${number(span.start)} ${stop}`;
    button.setAttribute("aria-label", button.title);
    button.setAttribute("aria-pressed", String(trace.candidates[p * trace.width + span.column] === winner));
    Object.assign(button.style, { left: `${100 * span.left}%`, width: `${100 * (span.right - span.left)}%` });
    button.onclick = () => turn(app, name, insideOf(span, scale, valueOf(trace, state, name)));
  });
}

/** The value of a stretch that is nearest to the place of the slider, a little inside. */
function insideOf(span, scale, now) {
  const [from, to] = [scale.to(span.start), span.stop === Infinity ? scale.high : scale.to(span.stop)];
  const margin = Math.min((scale.high - scale.low) / 100, (to - from) / 4);
  const aim = Math.min(Math.max(scale.to(now), from + margin), to - margin);
  return Number(scale.from(aim).toPrecision(6));
}

/** What other settings would pick: the tokens around the first change, grey after it. */
function drawWhatIf(app) {
  const { trace, state, ui } = app, names = Object.keys(state.settings);
  show(ui.whatIf, trace.controls.length > 0);
  if (ui.whatIf.hidden) return;
  if (!names.length) {
    setText(ui.whatIfSaid, "Move a control: what would these settings have picked?");
    return ui.whatIfTokens.replaceChildren();
  }
  const settings = newSettings(trace, state.settings), found = picks(trace, settings);
  const ours = trace.recorded, first = found.findIndex((pick, p) => pick !== ours[p]);
  const said = names.map(name => `${LABELS[name] ?? name} ${number(state.settings[name] ?? 0)}`).join(", ");
  setText(ui.whatIfSaid, first < 0 ? `With ${said}: the same ${ours.length} tokens.`
    : `With ${said}: another token at position ${first}. Grey: picks after the text as it was; a new text starts there.`);
  const from = Math.max(0, first - 12), shown = first < 0 ? [] : found.slice(from, first + 40);
  fill(ui.whatIfTokens, shown, chip, (cell, id, k) => {
    const p = from + k, looks = { moved: id !== ours[p], change: p === first, grey: p > first };
    mendChip(cell, trace.texts[id], p, looks, p === first).title = id === ours[p] ? "as in the text" : `the text has ${trace.texts[ours[p]]}`;
  });
}

function drawActions(app) {
  const { state, ui, host } = app, [done, all] = host.get("progress") ?? [], running = all > 0;
  show(ui.actions, host.live);
  const column = app.columns?.[state.candidate] ?? 0;
  setText(ui.branch, `Branch on ${textAt(app.trace, state.position, column)}`);
  ui.regenerate.disabled = ui.branch.disabled = running || !host.get("source");
  ui.cancel.disabled = !running;
  show(ui.progress, running);
  if (running) Object.assign(ui.progress, { value: done, max: all });
  setText(ui.error, app.problem || host.get("said") || "");
  show(ui.error, ui.error.textContent !== "");
  show(ui.hint, host.live && !host.get("source"));
}

function drawBarOfChoices(app) {
  const { state, ui } = app, names = app.names.map((name, k) => [k, name]);
  const choices = (select, pairs) => fill(select, pairs, () => h("option"), (node, [value, name]) => { node.value = value; setText(node, name); });
  choices(ui.version, names);
  choices(ui.otherChoice, [[-1, "nothing"], ...names]);
  choices(ui.metric, metricsOf(app.trace).map(name => [name, name]));
  [ui.version.value, ui.otherChoice.value, ui.metric.value] = [state.version, state.other, state.metric];
  show(ui.version.parentNode, names.length > 1);
  show(ui.otherChoice.parentNode, names.length > 1);
  setText(ui.play, state.playing ? "Stop" : "Play");
  ui.said.setAttribute("aria-live", state.playing ? "off" : "polite");
}

function draw(app) {
  if (!app.trace.positions) {
    show(app.ui.body, false);
    show(app.ui.error, true);
    return setText(app.ui.error, "An empty trace: no token was chosen.");
  }
  show(app.ui.body, true);
  for (const pane of [drawBarOfChoices, drawText, drawAbout, drawStep, drawControls, drawWhatIf, drawLayers, drawRounds, drawOther, drawActions]) pane(app);
}

// ---------------------------------------------------------------- the state
const SHARED = ["version", "position", "settings"]; // what the kernel knows too

/** The one function that changes the state. */
function change(app, changes, tell = true) {
  const before = app.state, state = { ...before, ...changes };
  if (state.version !== before.version) {
    app.trace = app.traces[state.version];
    Object.assign(state, { position: app.trace.opening, settings: {}, candidate: 0 }, changes);
    if (!metricsOf(app.trace).includes(state.metric)) [state.metric] = metricsOf(app.trace);
  }
  state.position = Math.max(0, Math.min(state.position, app.trace.positions - 1));
  if (state.position !== before.position && !("candidate" in changes)) state.candidate = 0;
  app.state = state;
  draw(app);
  if (tell) for (const name of SHARED) if (state[name] !== before[name]) app.host.set(name, state[name]);
}

const metricsOf = trace => Object.keys(trace.metrics).filter(name => trace.values[name]?.some(Number.isFinite));
/** Move one control; a value that is the recorded one is no change. */
function turn(app, name, value) {
  const settings = { ...app.state.settings, [name]: value }, recorded = valueOf(app.trace, { settings: {} }, name);
  const scale = scaleOf(app.trace, name);
  if (Math.abs(scale.to(value) - scale.to(recorded)) < 1e-9) delete settings[name];
  app.problem = "";
  change(app, { settings });
}

function typed(app, name, box) {
  const value = Number(box.value), most = name === "alpha" ? 1 : 1e6, least = name === "amateur_temperature" ? 1e-3 : 0;
  if (box.value.trim() !== "" && value >= least && value <= most) return turn(app, name, value);
  app.problem = `${LABELS[name] ?? name} is ${box.value || "empty"}: type a number from ${least} to ${most}.`;
  drawActions(app);
}

// ---------------------------------------------------------------- events
const positionOf = event => event.target.closest?.("[data-position]")?.dataset.position;
function onClick(app, event) {
  const heat = event.target.closest?.(".heat"), candidate = event.target.closest?.(".candidate"), p = positionOf(event);
  if (heat) change(app, { position: +p, settings: { ...app.state.settings, layer: +heat.dataset.layer } });
  else if (candidate) change(app, { candidate: +candidate.dataset.candidate });
  else if (p !== undefined) change(app, { position: +p, playing: false });
}

const ask = (app, message) => { app.problem = ""; app.host.send(message); };
const focusToken = app => app.ui.tokens.children[app.state.position]?.firstChild.focus();
const focusCandidate = app => app.ui.rows.children[app.state.candidate]?.querySelector("button").focus();
/** Arrows move along the text and through the candidates, Enter branches, Escape returns. */
function onKey(app, event) {
  const inText = app.ui.tokens.contains(event.target), inStep = app.ui.rows.contains(event.target), { state } = app;
  const along = { ArrowLeft: state.position - 1, ArrowRight: state.position + 1, Home: 0, End: Infinity }[event.key];
  const through = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.key === "Escape") {
    change(app, { playing: false });
    focusToken(app);
  } else if ((inText || inStep) && along !== undefined) {
    change(app, { position: Math.min(along, app.trace.positions - 1), candidate: inStep ? state.candidate : 0 });
    (inText ? focusToken : focusCandidate)(app);
  } else if ((inText || inStep) && through) {
    if (inStep) change(app, { candidate: Math.max(0, Math.min(state.candidate + through, app.columns.length - 1)) });
    focusCandidate(app);
  } else if (inStep && event.key === "Enter") branch(app);
  else return;
  event.preventDefault();
}

function branch(app) {
  const { trace, state } = app, place = state.position * trace.width + app.columns[state.candidate];
  if (app.host.live && app.host.get("source")) return ask(app, { do: "branch", token: trace.ids[trace.candidates[place]] });
  app.problem = "Only a notebook whose inspector has a source can branch: inspect(generation, source=source).";
  drawActions(app);
}

/** The text written step by step. */
function play(app) {
  clearInterval(app.timer);
  const playing = !app.state.playing, last = app.trace.positions - 1;
  change(app, { playing, position: playing && app.state.position >= last ? 0 : app.state.position });
  const tick = () => {
    if (!app.state.playing) clearInterval(app.timer);
    else change(app, app.state.position < last ? { position: app.state.position + 1 } : { playing: false });
  };
  if (playing) app.timer = setInterval(tick, 1000 / +app.ui.speed.value);
}

// ---------------------------------------------------------------- the page
const labelled = (text, control) => h("label", {}, `${text} `, control);
function build(root) {
  const ui = { root };
  const add = (name, tag, given = {}, ...children) => (ui[name] = h(tag, given, ...children));
  const pane = (name, title, ...children) => add(name, "section", { className: name, "aria-label": title }, h("h3", { textContent: title }), ...children);
  const speeds = [1, 2, 5, 10].map(n => h("option", { value: n, textContent: `${n} per second` }));
  const bar = h("div", { className: "bar" }, labelled("text", add("version", "select")), labelled("colour", add("metric", "select")),
    labelled("beside", add("otherChoice", "select")), add("play", "button", { type: "button" }), labelled("speed", add("speed", "select", {}, ...speeds)));
  ui.speed.value = 2;
  const legend = add("legend", "div", { className: "legend" }, h("span"), h("span", { className: "scale" }), h("span"), h("span"));
  const text = add("text", "div", { className: "text" }, add("prompt", "span", { className: "prompt" }), add("written", "span", { className: "written" }),
    add("tokens", "span", { role: "toolbar", "aria-label": "the text, token by token" }));
  const table = h("table", {}, h("thead", {}, add("head", "tr")), add("rows", "tbody"));
  const step = h("section", { className: "step", "aria-label": "candidates of the selected position" }, h("div", { className: "wide" }, table), add("more", "button", { type: "button", className: "small" }), add("key", "p", { className: "key" }));
  const settings = h("section", { className: "settings", "aria-label": "settings" }, add("controls", "div"), add("reset", "button", { type: "button", className: "small", textContent: "as recorded" }),
    add("whatIf", "div", { className: "what-if" }, add("whatIfSaid", "p", { "aria-live": "polite" }), add("whatIfTokens", "div", { className: "tokens" })));
  const actions = add("actions", "div", { className: "actions" }, add("regenerate", "button", { type: "button", textContent: "Regenerate from here" }), add("branch", "button", { type: "button" }),
    add("cancel", "button", { type: "button", textContent: "Cancel" }), add("progress", "progress", { "aria-label": "tokens written" }), add("hint", "span", { className: "key", textContent: "inspect(generation, source=source) can run the model again" }));
  const layers = pane("layers", "Layers", h("p", { className: "key", textContent: "Divergence of each candidate layer from the last; outlined: the layer that is contrasted. Click one to contrast it everywhere." }),
    h("div", { className: "wide" }, h("table", {}, add("layerRows", "tbody"), h("tfoot", {}, add("layerFoot", "tr")))));
  const rounds = pane("rounds", "Speculation", add("roundsSaid", "p"), add("roundRows", "ul"),
    h("p", { className: "key", textContent: "\u2713 accepted, \u2717 rejected, pale: not looked at, \u2192 drawn from the residual, + bonus. Bar: the chance min(1, p/q); tick: the number u that was drawn." }));
  const other = pane("other", "Beside it", add("otherSaid", "p"), add("otherTokens", "div", { className: "tokens" }));
  add("said", "p", { className: "said", role: "status", "aria-live": "polite" });
  add("error", "p", { className: "error", role: "alert", hidden: true });
  add("body", "div", {}, bar, text, add("about", "p", { className: "about" }), legend, other, h("div", { className: "columns" }, step, settings), layers, rounds, actions);
  text.after(ui.said); // the sentence is under the text
  root.append(ui.body, ui.error);
  return ui;
}

function listen(app) {
  const { ui, root } = app;
  root.addEventListener("click", event => onClick(app, event));
  root.addEventListener("keydown", event => onKey(app, event));
  const hover = event => {
    app.hover = /leave|out$/.test(event.type) ? undefined : positionOf(event);
    drawAbout(app);
  };
  for (const kind of ["pointerover", "focusin", "pointerleave", "focusout"]) ui.tokens.addEventListener(kind, hover);
  ui.version.onchange = () => change(app, { version: +ui.version.value });
  ui.metric.onchange = () => change(app, { metric: ui.metric.value });
  ui.otherChoice.onchange = () => change(app, { other: +ui.otherChoice.value });
  ui.more.onclick = () => change(app, { rows: app.state.rows < 32 ? 32 : app.trace.width - 1 });
  ui.reset.onclick = () => { change(app, { settings: {} }); focusToken(app); };
  ui.play.onclick = () => play(app);
  ui.regenerate.onclick = () => ask(app, { do: "regenerate" });
  ui.branch.onclick = () => branch(app);
  ui.cancel.onclick = () => ask(app, { do: "cancel" });
}

let count = 0;
/** Draw the inspector into an element. host: {live, names(), packed(k), get(name), set(name, value), send(message)}. */
export async function mount(element, host) {
  const root = h("div", { className: "cdlearn-inspector", role: "group", "aria-label": "token inspector" });
  element.append(root);
  const app = { root, host, id: `cdlearn-${++count}`, unpacking: [], problem: "", ui: build(root) };
  await load(app);
  const version = host.get("version") ?? 0;
  app.trace = app.traces[version];
  const start = { version, position: host.get("position") ?? app.trace.opening, settings: host.get("settings") ?? {} };
  app.state = { ...start, candidate: 0, rows: 8, metric: metricsOf(app.trace)[0], other: host.get("other") ?? -1, playing: false };
  listen(app);
  draw(app);
  return app;
}

async function load(app) { // each version once, however often the kernel calls
  const names = app.host.names();
  names.forEach((_, k) => { app.unpacking[k] ??= unpack(app.host.packed(k)); });
  [app.traces, app.names] = [await Promise.all(app.unpacking), names];
}

/** For a page without a kernel: what is embedded is all there is. packed: [[name, base64], ...]. */
export function page(packed, other = -1) {
  const bytes = packed.map(([, text]) => Uint8Array.from(atob(text), character => character.charCodeAt(0)));
  return { live: false, names: () => packed.map(([name]) => name), packed: k => bytes[k], get: name => (name === "other" ? other : undefined), set() {}, send() {} };
}

function widget(model) {
  const view = data => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return {
    live: true,
    names: () => model.get("_packed").map(([name]) => name),
    packed: k => view(model.get("_packed")[k][1]),
    get: name => model.get(`_${name}`),
    set(name, value) { model.set(`_${name}`, value); model.save_changes(); },
    send: message => model.send(message),
  };
}

/** anywidget's door. */
export default {
  async render({ model, el }) {
    const app = await mount(el, widget(model)), handlers = [];
    const on = (name, handler) => { model.on(name, handler); handlers.push([name, handler]); };
    const follow = async () => { // the kernel changed something
      await load(app);
      const changes = Object.fromEntries(SHARED.map(name => [name, model.get(`_${name}`)]));
      if (SHARED.some(name => JSON.stringify(changes[name]) !== JSON.stringify(app.state[name]))) change(app, changes, false);
      else draw(app);
    };
    for (const name of ["_packed", ...SHARED.map(name => `_${name}`)]) on(`change:${name}`, follow);
    for (const name of ["_progress", "_said"]) on(`change:${name}`, () => drawActions(app));
    return () => { handlers.forEach(([name, handler]) => model.off(name, handler)); clearInterval(app.timer); app.root.remove(); };
  },
};
