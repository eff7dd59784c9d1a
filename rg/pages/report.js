// The cards of rg/pages/report.py: parts are switched off and on, and the new answer is told.

const TOLD = 3; // classes of a new answer

for (const card of document.querySelectorAll(".what-if")) {
  const choices = JSON.parse(card.dataset.choices), off = new Set();
  const [whole] = answersWithout(choices, off);
  card.hidden = false;
  for (const button of card.querySelectorAll(".toggle")) button.addEventListener("click", () => {
    const part = Number(button.dataset.part);
    if (!off.delete(part)) off.add(part);
    button.setAttribute("aria-pressed", String(!off.has(part)));
    tell(card, choices, whole, off);
  });
}

function tell(card, choices, whole, off) {
  const names = [...card.querySelectorAll(".toggle")].filter((button) => off.has(Number(button.dataset.part))).map((button) => button.title);
  const best = answersWithout(choices, off).slice(0, TOLD).map(({ label, probability }) => `${label}, ${percent(probability)}`);
  card.querySelector(".without").textContent = names.length ? `${offInWords(names, choices)}: ${best[0]}. With all parts: ${whole.label}, ${percent(whole.probability)}.` : "";
  card.querySelector(".next").textContent = names.length && best.length > 1 ? `Next: ${best.slice(1).join("; ")}.` : "";
}
