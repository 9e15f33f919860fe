function showResults() {
  const results = page.models.map((model) => model.result);
  const of = [time(page.seconds), page.speakers ? plural(page.speakers, "speaker") : null, page.release || null,
    results[0].split ? `split by ${results[0].split}` : null].filter(Boolean).join(", ");
  at("about").textContent = `What ${plural(results.length, "model")} made of ${plural(page.utterances, "utterance")} (${of}): error ` +
    "rates, by group and by word too, frequent confusions, and every utterance with its audio beside what was written.";
  at("note").textContent = page.note;
  const second = results.find((result) => result.second_wer_kind); // all rows have one, or none
  const rates = ["loss", "cer", "wer", ...(second ? ["second_wer"] : [])];
  const heads = ["Model", ...["Test loss", "CER", "WER", ...(second ? [`WER, ${second.second_wer_kind}`] : []), "Substituted", "Deleted", "Inserted", "Without error"].map((head) => figure(head))];
  const lowest = {}; // losses over different letters do not compare
  for (const key of rates.slice(1)) {
    lowest[key] = Math.min(...results.map((result) => result[key] ?? Infinity));
  }
  const measured = (result, key) => ({class: results.length > 1 && result[key] === lowest[key] ? "figure best" : "figure",
    content: [rate(result[key]), result[`${key}_interval`] ? make("small", null, interval(result[`${key}_interval`])) : null]});
  const rows = page.models.map(({result, without_error}) => row("td", [result.model,
    ...rates.map((key) => measured(result, key)),
    ...["substitutions", "deletions", "insertions"].map((key) => figure(count(result[key]))),
    figure(count(without_error))]));
  const about = (result, key) => [result[`${key}_new_run`] ? `± ${rate(result[`${key}_new_run`], 3)}` : null,
    result[`${key}_interval`] ? interval(result[`${key}_interval`]) : null].filter(Boolean).join(" ");
  const means = page.means.map((result) => row("td", [`${result.model} (mean of ${plural(result.runs, "run")})`,
    ...rates.map((key) => figure(rate(result[key]), make("small", null, about(result, key)))), "", "", "", ""]));
  const published = page.published.map((p) => row("td", [`${p.model} (published)`, ...[p.loss, p.cer, p.wer].map((v) =>
    figure(rate(v))), ...(second ? [""] : []), "", "", "", ""], {class: "published"}));
  at("table").append(make("thead", null, row("th", heads)), make("tbody", null, rows, means, published));

  for (const c of page.comparisons) {
    const sign = c.wer_difference > 0 ? "+" : "";
    at("differences").append(make("li", null, make("b", null, c.one), " minus ", make("b", null, c.other),
      `: WER ${sign}${rate(c.wer_difference)}${c.wer_interval ? ` ${interval(c.wer_interval)}` : ""}, ${c.verdict}.`));
  }
  const notes = ["Substituted, deleted and inserted words; utterances without a word error."];
  if (second) notes.push(`WER, ${second.second_wer_kind}: ${page.second_wer}`);
  const known = results.find((result) => result.wer_interval || result.cer_interval);
  if (known) notes.push(`In brackets: 95 % intervals, bootstrap-t over ${count(known.speakers)} speakers.`);
  if (page.means.length) notes.push("±: how far a new run may lie from the mean (95 %, Student's t).");
  const missing = new Set(results.map((result) => result.no_interval).filter(Boolean));
  notes.push(...[...missing].map((why) => `Where there is no interval: ${why}.`), ...[page.comparison_note].filter(Boolean));
  for (const result of results) {
    if (result.decoder.name === "external") notes.push(`${result.model} was written by another system: no loss.`);
    if (result.letters_missing) notes.push(`${result.model} lacks ${[...result.letters_missing].join(" ")}: ` +
      "the loss leaves them out of the references, CER and WER do not.");
    if (result.may_know_test_set) notes.push(`${result.model}: ${page.knows_test_set}`);
    if (result.loss_left_out) notes.push(`The loss of ${result.model} leaves out ${count(result.loss_left_out)} of ` +
      `${plural(result.utterances, "utterance")}: more letters than frames.`);
  }
  if (page.published.length) notes.push(`Published figures are on other data: ${page.published_on || "not stated"}.`);
  at("footnotes").append(...notes.map((note) => make("li", null, make("small", null, note))));
}

function lossCurve(epochs) {
  const [width, height, left, right, top, bottom] = [640, 300, 48, 92, 12, 40];
  const losses = epochs.flatMap((epoch) => epoch.slice(2)).filter((loss) => loss > 0);
  const [low, high] = [Math.log(Math.min(...losses)) - 0.1, Math.log(Math.max(...losses)) + 0.1];
  const [first, last] = [epochs[0][0] - 0.5, epochs.at(-1)[0] + 0.5];
  const x = (epoch) => left + ((width - left - right) * (epoch - first)) / (last - first);
  const y = (loss) => top + ((height - top - bottom) * (high - Math.log(loss))) / (high - low);
  const svg = drawn("svg", {viewBox: `0 0 ${width} ${height}`, role: "img"});
  const ends = epochs.at(-1).slice(2).map((loss) => rate(loss, 2));
  svg.setAttribute("aria-label", `Loss by epoch; after epoch ${epochs.at(-1)[0]}: training ${ends[0]}, validation ${ends[1]}`);
  const frozen = epochs.filter((epoch) => epoch[1] === "frozen").map((epoch) => epoch[0]);
  if (frozen.length) {
    const [from, to] = [x(Math.min(...frozen) - 0.5), x(Math.max(...frozen) + 0.5)];
    svg.append(drawn("rect", {class: "frozen", x: from, y: top, width: to - from, height: height - top - bottom}));
    const [middle, foot] = [(from + to) / 2 + 4, height - bottom - 8];
    svg.append(drawn("text", {x: middle, y: foot, transform: `rotate(-90 ${middle} ${foot})`}, "encoder frozen"));
  }
  for (let power = -3; power < 5; power++) {
    for (const tick of [1, 2, 5].map((digit) => digit * 10 ** power)) {
      if (Math.log(tick) < low || Math.log(tick) > high) continue;
      svg.append(drawn("line", {class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick)}));
      svg.append(drawn("text", {x: left - 8, y: y(tick) + 4, "text-anchor": "end"}, String(Number(tick.toPrecision(1)))));
    }
  }
  const every = Math.max(1, Math.ceil(epochs.length / 10));
  for (const [epoch] of epochs.filter((_, i) => (i + 1) % every === 0)) {
    svg.append(drawn("text", {x: x(epoch), y: height - bottom + 18, "text-anchor": "middle"}, String(epoch)));
  }
  svg.append(drawn("text", {x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle"}, "epoch"));
  const lines = [["train", 2, "training"], ["validation", 3, "validation"]];
  const labels = lines.map(([kind, column, label]) => {
    const points = epochs.filter((epoch) => epoch[column] > 0).map((epoch) => [x(epoch[0]), y(epoch[column])]);
    svg.append(drawn("polyline", {class: kind, points: points.map((point) => point.join(",")).join(" ")}));
    return {kind, label, y: (points.at(-1)?.[1] ?? top) + 4};
  });
  const [upper, lower] = labels.sort((a, b) => a.y - b.y);
  lower.y = Math.max(lower.y, upper.y + 15);
  for (const {kind, label, y} of labels) svg.append(drawn("text", {class: kind, x: width - right + 2, y}, label));
  return svg;
}
function showTraining() {
  const trained = page.models.filter((model) => model.loss_curve.some((epoch) => epoch[2] > 0 || epoch[3] > 0));
  at("training").hidden = at("to-training").hidden = !trained.length;
  at("curves").append(...trained.map((model) => make("figure", null, make("figcaption", null,
    make("b", null, model.result.model), make("small", null, " CTC loss, nats per utterance")), lossCurve(model.loss_curve))));
}

/** Rows of group, utterances, WER as a bar and a number, under a heading of their own. */
function groupRows([title, groups], overall, widest) {
  const rows = groups.map(({name, utterances, wer}) => {
    const bar = make("div", {class: "bar"}, make("i"), make("b"));
    bar.firstChild.style.width = `${(100 * (wer ?? 0)) / widest}%`;
    bar.lastChild.style.left = `${(100 * overall) / widest}%`;
    return row("td", [{content: name}, figure(count(utterances)), {class: "grow", content: bar}, figure(rate(wer, 3))]);
  });
  return make("tbody", null, make("tr", null, make("th", {scope: "rowgroup", colspan: 4, class: "group"}, title)), rows);
}
function showGroups(model) {
  const slices = Object.entries(model.result.slices ?? {}).map(([title, groups]) => [title,
    Object.entries(groups).map(([name, group]) => ({name, ...group}))]).filter(([, groups]) => groups.length);
  const speakers = model.by_speaker.map(([speaker, utterances, words, errors]) => {
    const name = make("button", {type: "button", class: "link", title: "show the utterances"}, speaker);
    name.addEventListener("click", () => { at("filter").reset(); at("speaker").value = speaker; update(); toUtterances(); });
    return {name, utterances, wer: errors / words};
  });
  const title = page.speakers > speakers.length ? `the ${speakers.length} speakers of the highest WER` : "speakers, the highest WER first";
  const tables = [slices, speakers.length ? [[title, speakers]] : []].filter((groups) => groups.length);
  const overall = model.result.wer;
  const widest = Math.max(overall, ...tables.flat().flatMap(([, groups]) => groups.map((group) => group.wer ?? 0))) || 1;
  at("groups").hidden = at("to-groups").hidden = !tables.length;
  at("slices").replaceChildren(...tables.map((groups) => make("div", {class: "scroll", role: "region", "aria-label":
    `Word error rate by ${groups.map(([title]) => title).join(", ")}`, tabindex: 0}, make("table", null, make("thead", null, row("th", ["Group", figure("Utterances"),
    make("span", {class: "unseen"}, "WER as a bar"), figure("WER")])), groups.map((group) => groupRows(group, overall, widest))))));
}

function showConfusions(model) {
  const shown = (text) => (text === "" ? make("i", {class: "muted"}, "nothing") : make("bdi", {lang: page.language},
    text === " " ? "␣" : text));
  const kinds = [["letters", "Letters"], ["accents", "Accents"], ["words", "Words"]];
  at("lists").replaceChildren(...kinds.map(([kind, title]) => {
    const rows = model.confusions[kind].map(([reference, hypothesis, number, of, example]) => row("td", [
      {content: [shown(reference), " → ", shown(hypothesis)]}, figure(count(number)), figure(of ? count(of) : ""),
      figure(example === null ? "" : make("a", {href: `#u${example}`}, `no. ${example}`))]));
    return make("div", null, make("h3", null, title), rows.length ? make("table", null, make("thead", null, row("th",
      ["Reference → written", figure("Count"), figure("Of"), figure("Example")])), make("tbody", null, rows))
      : make("p", {class: "muted"}, "None."));
  }));
}
