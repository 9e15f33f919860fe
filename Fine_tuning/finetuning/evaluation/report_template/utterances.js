const STEP = 40; // utterances put on the page at a time
const PAUSE_MS = 300; // browsers refuse addresses that change many times a second
const ANY_ACCENT = /[\u0300-\u036f]/g;

const utterances = []; // of all models, in the order of the manifest
const referenceOf = (word) => (typeof word === "string" ? word : word[0].join(""));
const hypothesisOf = (word) => (typeof word === "string" ? word : word[1].join(""));
const join = (words, side) => words.map(side).filter(Boolean).join(" ");
function addUtterances(shown) {
  utterances.push(...shown.map(({by_model, ...rest}) => ({...rest, of: by_model.map(
    ({loss, counts: [errors, words, letterErrors, letters], words: aligned}) =>
      ({loss, errors, wer: errors / words, cer: letterErrors / letters, aligned}))})));
}
let found = [];
let only = null; // the number of an utterance linked to
let [word, near] = ["", ""]; // what a link of the words and of the scatter has chosen
let defaults = {};
let pause = null;

const lower = (text) => text.toLowerCase().normalize("NFC");
const folded = (text) => text.toLowerCase().normalize("NFD").replace(ANY_ACCENT, "").normalize("NFC");
/** Whether a text holds the words sought; an accent in them must be there, without one any is as good. */
function searcher(sought) {
  const fold = folded(sought) === lower(sought);
  const [change, key] = fold ? [folded, "foldedText"] : [lower, "lowerText"];
  const wanted = change(sought);
  return (utterance, of) => {
    of[key] ??= change([join(of.aligned, referenceOf), join(of.aligned, hypothesisOf), utterance.sentence, utterance.file].join("\n"));
    return of[key].includes(wanted);
  };
}

function alignment(of, name) {
  const pieces = (side, around) => side.map((piece, i) => (i % 2 && !around ? make("u", null, piece) : piece));
  const cells = of.aligned.map((word) => {
    if (typeof word === "string") return make("span", null, make("span", {class: "r"}, word), make("span", {class: "h"}, word));
    const [reference, hypothesis] = word;
    const kind = !hypothesis.join("") ? "del" : !reference.join("") ? "ins" : "sub";
    const written = kind === "ins" ? ["[", ...pieces(hypothesis, true), "]"] : pieces(hypothesis);
    return make("span", {class: kind}, make("span", {class: "r"}, pieces(reference, kind !== "sub")), make("span", {class: "h"}, written));
  });
  return make("div", {class: "said", lang: page.language, dir: "auto"}, name ? make("small", {lang: "en", dir: "ltr"}, name) : null,
    make("p", {class: "unseen"}, make("span", {lang: "en"}, "Reference: "), join(of.aligned, referenceOf), ". ",
      make("span", {lang: "en"}, "Written: "), join(of.aligned, hypothesisOf) || "nothing", "."),
    make("div", {class: "words", "aria-hidden": "true"}, cells));
}
function card(utterance, model, other) {
  const of = utterance.of[model];
  const fact = (name, value) => make("span", null, `${name} `, make("b", null, value));
  const about = [utterance.file, ...utterance.about].join(" · ");
  const name = (i) => (other === null ? null : `${page.models[i].result.model}: WER ${rate(utterance.of[i].wer, 3)}`);
  return make("article", {id: `u${utterance.number}`, "aria-label": `Utterance ${utterance.number}`},
    make("header", null, make("div", {class: "facts"}, make("h3", null, `No. ${utterance.number}`),
      fact("WER", rate(of.wer, 3)), fact("CER", rate(of.cer, 3)), fact("loss", rate(of.loss, 2)),
      fact("errors", String(of.errors)), fact("duration", `${utterance.duration.toFixed(1)} s`),
      utterance.speaker ? fact("speaker", utterance.speaker) : null), playButton(utterance)),
    alignment(of, name(model)), other === null ? null : alignment(utterance.of[other], name(other)),
    make("small", null, make("bdi", {lang: page.language}, utterance.sentence), utterance.sentence ? " · " : "", make("bdi", null, about)));
}

const chosen = () => ({model: Number(at("model").value), other: at("other").value === "" ? null : Number(at("other").value)});
/** What is sought, each condition in words and as a function of an utterance. */
function conditions() {
  const {model, other} = chosen();
  if (only !== null) return [[`number ${only}`, ({number}) => number === only]];
  const [text, speaker, least] = [at("text").value.trim(), at("speaker").value, Number(at("least").value) || 0];
  const holds = ({of}, isWrong) => of[model].aligned.some((one) => referenceOf(one) === word && !(isWrong && typeof one === "string"));
  const isWrong = Boolean(word) && utterances.some((utterance) => holds(utterance, true));
  const isText = text ? searcher(text) : null;
  const [across, up] = near.split(",").map(Number);
  return [
    text && [`the text “${text}”`, (utterance) => isText(utterance, utterance.of[model])],
    speaker && [`speaker ${speaker}`, (utterance) => utterance.speaker === speaker],
    least > 0 && [`WER at least ${least}`, ({of}) => of[model].wer >= least],
    at("errors").checked && ["errors", ({of}) => of[model].errors > 0],
    word && [`the word “${word}”${isWrong ? ", misrecognised" : ""}`, (utterance) => holds(utterance, isWrong)],
    near && [`WER of about ${cellName(across)}, and ${cellName(up)} by ${page.models[other].result.model}`,
      ({of}) => cellOf(of[model].wer) === across && cellOf(of[other].wer) === up],
  ].filter(Boolean);
}
function update() {
  const {model, other} = chosen();
  const sought = conditions();
  found = utterances.filter((utterance) => sought.every(([, holds]) => holds(utterance)));
  const keys = {
    wer: (u) => u.of[model].wer, cer: (u) => u.of[model].cer, loss: (u) => u.of[model].loss ?? -Infinity,
    errors: (u) => u.of[model].errors, duration: (u) => u.duration, number: (u) => -u.number,
    worse: (u) => (other === null ? 0 : u.of[model].errors - u.of[other].errors),
  };
  const key = keys[at("sort").value];
  const order = at("reversed").checked ? -1 : 1;
  found.sort((a, b) => order * (key(b) - key(a)) || keys.cer(b) - keys.cer(a) || a.number - b.number);
  const names = sought.map(([name]) => name).join("; ");
  const seconds = found.reduce((total, utterance) => total + utterance.duration, 0);
  at("status").textContent = only === null || !found.length
    ? `${count(found.length)} of ${plural(utterances.length, "utterance")}, ${time(seconds)}` + (word || near ? `, with ${names}` : "")
    : `Utterance ${only} alone`;
  at("nothing").textContent = found.length || !utterances.length ? "" : `Nothing matches ${names}.`;
  at("all").hidden = found.length === utterances.length;
  at("download").hidden = !found.length;
  at("list").replaceChildren();
  showMore();
  clearTimeout(pause);
  pause = setTimeout(writeLink, PAUSE_MS);
}
function showMore() {
  const {model, other} = chosen();
  const done = at("list").children.length;
  at("list").append(...found.slice(done, done + STEP).map((utterance) => card(utterance, model, other)));
  at("more").hidden = done + STEP >= found.length;
}
function toUtterances() {
  at("utterances").scrollIntoView();
  at("utterances").focus({preventScroll: true});
}

/** A line of a CSV file (RFC 4180). What a spreadsheet would take for a formula is marked as text by an apostrophe. */
const csvLine = (cells) => cells.map((cell) => {
  const text = typeof cell === "string" ? cell.replace(/^(?=\s*[=+\-@＝＋－＠]|[\t\r\n])/, "'") : String(cell ?? "");
  return /[",\r\n']/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}).join(",");
/** The utterances found, in their order: what all models wrote. */
function foundAsCsv() {
  const names = page.models.map((model) => model.result.model);
  const heads = ["number", "file", "speaker", "duration_s", "sentence", "reference",
    ...names.flatMap((name) => [name, `WER of ${name}`, `CER of ${name}`, `loss of ${name}`])];
  const {model} = chosen();
  const lines = found.map(({number, file, speaker, duration, sentence, of}) => [number, file, speaker, duration, sentence,
    join(of[model].aligned, referenceOf), ...of.flatMap(({aligned, wer, cer, loss}) => [join(aligned, hypothesisOf), wer, cer, loss])]);
  return `\ufeff${[heads, ...lines].map(csvLine).join("\r\n")}\r\n`; // the mark makes Excel read UTF-8
}
function download() {
  const address = URL.createObjectURL(new Blob([foundAsCsv()], {type: "text/csv"}));
  make("a", {href: address, download: "utterances.csv"}).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}
