const CELL = 0.1; // of WER, the width of a circle's square in the scatter
const MOST_CELLS = 16; // whatever is worse counts as this many
const cellOf = (wer) => Math.min(MOST_CELLS, Math.round(wer / CELL));
const cellName = (cell) => `${rate(cell * CELL, 1)}${cell === MOST_CELLS ? " or more" : ""}`;

/** Utterances by the WER of two models: a circle is as large as the utterances in its square are many, and a link to them. */
function scatter(model, other) {
  const cells = new Map();
  for (const {of} of utterances) {
    const key = `${cellOf(of[model].wer)},${cellOf(of[other].wer)}`;
    cells.set(key, (cells.get(key) ?? 0) + 1);
  }
  const places = [...cells].map(([key, number]) => ({key, number, at: key.split(",").map(Number)}));
  const [size, left, bottom, rim] = [520, 56, 48, 20];
  const ends = Math.max(2, ...places.flatMap((place) => place.at));
  const place = (cell) => rim + ((size - left - 2 * rim) * cell) / ends;
  const [x, y] = [(cell) => left + place(cell), (cell) => size - bottom - place(cell)];
  const names = [model, other].map((i) => page.models[i].result.model);
  const svg = drawn("svg", {viewBox: `0 0 ${size} ${size}`, role: "group", "aria-label": `WER of ${names[0]} and of ${names[1]}`});
  for (let cell = 0; cell <= ends; cell += ends > 6 ? 2 : 1) {
    const label = cell === MOST_CELLS ? `${rate(cell * CELL, 1)}+` : rate(cell * CELL, 1);
    svg.append(drawn("line", {class: "grid", x1: x(0), x2: x(ends), y1: y(cell), y2: y(cell)}),
      drawn("line", {class: "grid", x1: x(cell), x2: x(cell), y1: y(0), y2: y(ends)}),
      drawn("text", {x: x(cell), y: size - bottom + 14, "text-anchor": "middle"}, label),
      drawn("text", {x: left - 6, y: y(cell) + 4, "text-anchor": "end"}, label));
  }
  svg.append(drawn("line", {class: "diagonal", x1: x(0), y1: y(0), x2: x(ends), y2: y(ends)}));
  const most = Math.max(...places.map(({number}) => number));
  places.sort((a, b) => b.number - a.number); // the small ones in front
  for (const {key, number, at: [across, up]} of places) {
    const says = `${plural(number, "utterance")}: WER ${cellName(across)} by ${names[0]}, ${cellName(up)} by ${names[1]}`;
    const circle = drawn("circle", {cx: x(across), cy: y(up), r: 3 + 14 * Math.sqrt(number / most)}, drawn("title", {}, says));
    const target = link({...defaults, model: names[0], other: names[1], near: key});
    svg.append(drawn("a", {href: target, "aria-label": says}, circle));
  }
  return svg;
}
function showScatter() {
  const {model} = chosen();
  const others = page.models.map(({result}, i) => [result.wer ?? Infinity, i]).filter(([, i]) => i !== model);
  at("scatter").hidden = !others.length || !utterances.length;
  if (at("scatter").hidden) return;
  const other = chosen().other ?? others.sort((a, b) => a[0] - b[0])[0][1]; // the best of them
  const difference = utterances.map(({of}) => of[model].errors - of[other].errors);
  const [names, better] = [[model, other].map((i) => page.models[i].result.model), difference.filter((errors) => errors < 0).length];
  const worse = difference.filter((errors) => errors > 0).length;
  at("scatter-about").textContent = `Of ${plural(utterances.length, "utterance")}, ${names[0]} has fewer word errors in ` +
    `${count(better)}, ${names[1]} in ${count(worse)}, and both have as many in ${count(utterances.length - better - worse)}.`;
  at("across").textContent = `→ WER of ${names[0]}`;
  at("up").textContent = `↑ WER of ${names[1]}`;
  at("cloud").replaceChildren(scatter(model, other));
}
