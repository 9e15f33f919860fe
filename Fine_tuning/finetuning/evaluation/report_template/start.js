/** What is chosen, by the names that a link to it has; models by name, for their order may change. */
function here() {
  const {model, other} = chosen();
  const name = (i) => (i === null ? "" : page.models[i].result.model);
  const [reversed, errors] = ["reversed", "errors"].map((id) => (at(id).checked ? "1" : ""));
  const [text, speaker, least, sort] = ["text", "speaker", "least", "sort"].map((id) => at(id).value);
  return {model: name(model), other: name(other), text, speaker, least, sort, reversed, errors, word, near};
}
function link(choice) {
  const parameters = new URLSearchParams(Object.entries(choice).filter(([key, value]) => value !== defaults[key]));
  return parameters.size ? `#${parameters}` : "#utterances";
}
function writeLink() {
  const address = only === null ? link(here()) : `#u${only}`;
  const isChosen = (hash) => /=|^#u\d/.test(hash);
  if (isChosen(address) || isChosen(location.hash)) history.replaceState(null, "", address);
}
/** The choice that a link names, and the parts of it that this page does not know. */
function readLink(hash) {
  const [choice, unknown] = [{...defaults}, []];
  const names = page.models.map((model) => model.result.model);
  const isOption = (id, value) => [...at(id).options].some((option) => option.value === value);
  const isKnown = {
    model: (value) => names.includes(value), other: (value) => names.includes(value), text: () => true, word: () => true,
    speaker: (value) => isOption("speaker", value), sort: (value) => isOption("sort", value),
    least: (value) => Number(value) >= 0, reversed: (value) => value === "1", errors: (value) => value === "1",
    near: (value) => /^\d+,\d+$/.test(value),
  };
  for (const [key, value] of new URLSearchParams(hash)) {
    if (Object.hasOwn(isKnown, key) && isKnown[key](value)) choice[key] = value;
    else unknown.push(value ? `${key} ${value}` : key);
  }
  if (choice.other === choice.model) choice.other = "";
  if (!choice.other) choice.near = "";
  return {choice, unknown};
}
function followLink() {
  const hash = location.hash.slice(1);
  if (!/=|^u\d+$/.test(hash)) return;
  clearTimeout(pause);
  const isOne = !hash.includes("=");
  const {choice, unknown} = isOne ? {choice: here(), unknown: []} : readLink(hash);
  only = isOne ? Number(hash.slice(1)) : null;
  const before = at("model").value;
  const index = (name) => page.models.findIndex((model) => model.result.model === name);
  at("model").value = String(index(choice.model));
  if (at("model").value !== before) showModel();
  at("other").value = choice.other ? String(index(choice.other)) : "";
  for (const id of ["text", "speaker", "least", "sort"]) at(id).value = choice[id];
  for (const id of ["reversed", "errors"]) at(id).checked = Boolean(choice[id]);
  [word, near] = [choice.word, choice.near];
  showOther();
  at("link-note").textContent = unknown.length ? `The link names what this page does not have: ${unknown.join(", ")}.` : "";
  toUtterances();
}
function forgetLink() {
  [only, word, near] = [null, "", ""];
  at("link-note").textContent = "";
}

function showModel() {
  const {model} = chosen();
  for (const element of document.querySelectorAll(".of-model")) element.textContent = page.models[model].result.model;
  const others = page.models.map((of, i) => [of.result.model, i]).filter(([, i]) => i !== model);
  const before = at("other").value;
  at("other").replaceChildren(make("option", {value: ""}, "no other"), ...others.map(([name, i]) => make("option", {value: i}, name)));
  if (before !== String(model)) at("other").value = before;
  showGroups(page.models[model]);
  showConfusions(page.models[model]);
  if (utterances.length) showWords();
  showOther();
}
function showOther() {
  const worse = at("sort").querySelector("[value=worse]");
  worse.hidden = worse.disabled = at("other").value === "";
  if (worse.disabled && at("sort").value === "worse") at("sort").value = "wer";
  showScatter();
  update();
}

function showTexts() {
  const names = page.models.map((model) => model.result.model);
  at("model").append(...names.map((name, i) => make("option", {value: i}, name)));
  const wers = page.models.map((model) => model.result.wer ?? Infinity);
  at("model").value = String(wers.indexOf(Math.min(...wers)));
  at("choose-model").hidden = at("choose-other").hidden = names.length === 1;
  at("audio-note").textContent = page.audio === "embedded" ? "The audio is in this file, as MP3 of 32 kbit/s."
    : page.audio === "linked" ? "The audio is linked: it plays as long as this file and the data lie where they were made."
    : "The audio lies in shards, where a browser cannot play it; evaluate the wavs themselves to hear it.";
  at("hashes").append(...page.models.map(({result}) => make("p", null, make("b", null, result.model), make("br"),
    ...Object.entries(result.sha256).flatMap(([name, hash]) => [`${name} SHA-256 `, make("code", null, hash), make("br")]),
    Object.entries(result.versions).map(([name, version]) => `${name} ${version}`).join(", "))));
  showResults();
  showTraining();
  for (const id of ["nav", "#page", "#made-of"]) document.querySelector(id).hidden = false;
}
function listen() {
  at("model").addEventListener("change", () => { near = ""; showModel(); });
  at("other").addEventListener("change", () => { near = ""; showOther(); });
  at("filter").addEventListener("input", (event) => { if (event.target !== at("other")) { forgetLink(); update(); } });
  at("filter").addEventListener("submit", (event) => event.preventDefault());
  at("filter").addEventListener("reset", () => { forgetLink(); setTimeout(showOther); });
  at("all").addEventListener("click", () => at("filter").reset());
  at("more").addEventListener("click", showMore);
  at("unseen").addEventListener("change", showWords);
  at("download").addEventListener("click", download);
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && showMore(), {rootMargin: "800px"})
    .observe(at("more"));
  addEventListener("hashchange", followLink);
  document.addEventListener("play", (event) => {
    for (const player of document.querySelectorAll("audio")) if (player !== event.target) player.pause();
  }, true);
  document.addEventListener("error", (event) => {
    if (event.target instanceof HTMLAudioElement) event.target.replaceWith(make("small", null, "the audio is not where it was"));
  }, true);
}

/** Run the scripts beside the page, each of which adds utterances: a page from the disk may read no other files. */
async function loadChunks() {
  at("status").textContent = `Loading ${plural(page.utterances, "utterance")}…`;
  const scripts = page.chunks.map((address) => make("script", {src: address}));
  const ends = scripts.map((script) => new Promise((done) => { script.onload = script.onerror = done; }));
  document.head.append(...scripts);
  await Promise.all(ends);
  utterances.sort((a, b) => a.number - b.number);
}
async function start() {
  showTexts();
  showModel();
  if (page.chunks.length) await loadChunks();
  else addUtterances(page.shown);
  const missing = page.utterances - utterances.length;
  at("choice").textContent = missing ? `${plural(missing, "utterance")} of ${count(page.utterances)} cannot be shown: the folder ` +
    `${decodeURIComponent(page.chunks[0].split("/")[0])} must lie beside this page, as it was made.` : "";
  const speakers = [...new Set(utterances.map((utterance) => utterance.speaker).filter(Boolean))].sort();
  at("speaker").append(make("option", {value: ""}, "all"), ...speakers.map((speaker) => make("option", {value: speaker}, speaker)));
  at("choose-speaker").hidden = !speakers.length;
  at("words").hidden = at("to-words").hidden = !utterances.length;
  defaults = here();
  showModel();
  listen();
  followLink();
}
start();
