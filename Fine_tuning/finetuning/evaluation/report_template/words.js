const WORDS = 15; // rows of the table at first

/** Occurrences, errors, and the number of the first utterance with an error, of each word of the references. */
function countWords(model) {
  const words = new Map();
  for (const {number, of} of utterances) {
    for (const word of of[model].aligned) {
      const reference = referenceOf(word);
      if (!reference) continue;
      if (!words.has(reference)) words.set(reference, {word: reference, times: 0, errors: 0, example: null});
      const counts = words.get(reference);
      counts.times += 1;
      if (typeof word === "string") continue;
      counts.errors += 1;
      counts.example ??= number;
    }
  }
  return [...words.values()];
}
const sum = (items, key) => items.reduce((total, item) => total + item[key], 0);
const percent = (part, of) => (of ? `${((100 * part) / of).toFixed(1)} %` : "none");
const right = (words) => percent(sum(words, "times") - sum(words, "errors"), sum(words, "times"));

/** The words of the highest error rate first, after adding average ones: a word that is rare does not lead by chance. */
function worstWords(words) {
  const average = sum(words, "errors") / (sum(words, "times") || 1);
  const rank = ({times, errors}) => (errors + average * page.prior_words) / (times + page.prior_words);
  return words.sort((a, b) => rank(b) - rank(a) || b.times - a.times || (a.word < b.word ? -1 : 1));
}
function showWords() {
  const {model} = chosen();
  const words = worstWords(countWords(model));
  const unseen = new Set(page.unseen_words ?? []);
  const never = words.filter(({word}) => unseen.has(word));
  const known = words.filter(({word}) => !unseen.has(word));
  at("words-about").textContent = `${plural(words.length, "word")} in the references, ${right(words)} of their occurrences right.` +
    (page.unseen_words === null ? " The training manifest is not there, so it is unknown which words training showed."
    : never.length ? ` ${count(never.length)} of them ${never.length === 1 ? "is" : "are"} in no training sentence: ${right(never)} right, ` +
      `against ${right(known)} of the others.` : " Each of them is in some training sentence.");
  at("choose-unseen").hidden = !never.length;
  const list = never.length && at("unseen").checked ? never : words.filter(({errors}) => errors);
  at("words-table").replaceChildren(make("caption", {class: "unseen"}, "Accuracy by word"), make("thead", null, row("th",
    ["Word", figure("Times"), figure("Wrong"), figure("Right"), figure("Example")])), make("tbody"));
  showMoreWords(list, unseen);
  at("more-words").onclick = () => showMoreWords(list, unseen);
}
function showMoreWords(words, unseen) {
  const body = at("words-table").tBodies[0];
  const done = body.rows.length;
  const next = words.slice(done, done ? done + 10 * WORDS : WORDS);
  body.append(...next.map(({word, times, errors, example}) => {
    const name = make("a", {href: link({...defaults, model: here().model, word}), lang: page.language, dir: "auto",
      title: errors ? "the sentences in which it is wrong" : "its sentences"}, word);
    return row("td", [{content: [name, unseen.has(word) ? make("small", null, " not in training") : null]}, figure(count(times)),
      figure(count(errors)), figure(percent(times - errors, times)),
      figure(example === null ? "" : make("a", {href: `#u${example}`}, `no. ${example}`))]);
  }));
  at("more-words").hidden = body.rows.length >= words.length;
}
