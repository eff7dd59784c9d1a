// Answers with parts switched off: rg/explain/choices.py in the browser. Goes in front of scripts that ask for them.

const LEAST = 2 ** -1022, MOST = 1 - 2 ** -53; // of a probability: a network is never certain, though rounding may say so

// Classes, most probable first, if the parts in the set `off` are: name, number among the choices, logit, probability.
function answersWithout({ labels, constants, places, contributions, temperature }, off) {
  const logits = constants.map((constant, c) => contributions[c].reduce((sum, adds, part) => (off.has(part) ? sum : sum + adds), constant + (places ? places[c] : 0)));
  const largest = Math.max(...logits), weights = logits.map((logit) => Math.exp((logit - largest) / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const shares = weights.map((weight) => Math.min(Math.max(weight / total, LEAST), MOST));
  return labels.map((label, c) => ({ label, number: c, logit: logits[c], probability: shares[c] })).sort((a, b) => b.logit - a.logit);
}

// In words: which parts are off, by their names, and among what the answers are.
function offInWords(names, { complete, labels }) {
  const list = names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0];
  return `Without ${list}${complete ? "" : `, among the ${labels.length} most probable classes`}`;
}
