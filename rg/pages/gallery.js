// The page of rg/pages/gallery.py: filters, a grid that holds only what is near the window, a dialog for one image.

const { about, rows } = JSON.parse(document.getElementById("data").textContent);
document.getElementById("data").remove();
const images = rows.map(([source, name, label, probability, answer, truth, rival, rivalProbability, constant, adds, attention, occurrence, width, height, rivalConstant, rivalAdds, title, seen, summary, place]) => ({
  source, name, label, probability, answer, truth, rival, rivalProbability, constant, adds, attention, occurrence, width, height, rivalConstant, rivalAdds, title, seen, summary, place,
  strongest: adds.indexOf(Math.max(...adds)),
  words: `${source} ${about.labels[label]}`.toLowerCase(),
}));

const CHUNK = 60; // images; full rows for 1 to 6 columns
const NARROWEST = 200, TEXT = 66, OCCURS = 0.5; // pixels of a card and of its text; occurrence from which a part occurs
const by = (id) => document.getElementById(id);
const file = (folder, image, suffix) => `${folder}/${encodeURIComponent(image.name)}.${suffix}`;
const isWrong = (image) => image.truth >= 0 && image.truth !== image.label;

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Filters ------------------------------------------------------------------------------------------------------------

const FILTERS = {
  find: (text) => { const words = text.toLowerCase().split(/\s+/).filter(Boolean); return (image) => words.every((word) => image.words.includes(word)); },
  label: (index) => (image) => image.label === Number(index),
  part: (index) => ROLES[by("role").value](Number(index)),
  least: (bound) => (image) => 100 * image.probability >= Number(bound),
  most: (bound) => (image) => 100 * image.probability <= Number(bound),
  answer: (index) => (image) => image.answer === Number(index),
  correct: (word) => (image) => word === (image.truth < 0 ? "open" : isWrong(image) ? "wrong" : "right"),
};
const ROLES = {
  counts: (part) => (image) => image.strongest === part,
  occurs: (part) => (image) => image.occurrence[part] >= OCCURS,
  lacks: (part) => (image) => image.occurrence[part] < OCCURS,
};
const ORDERS = {
  surest: (a, b) => b.probability - a.probability,
  least: (a, b) => a.probability - b.probability,
  file: (a, b) => (a.source < b.source ? -1 : a.source > b.source ? 1 : 0),
};
let shown = images;

function filter() {
  const tests = Object.keys(FILTERS).filter((id) => by(id).value.trim()).map((id) => FILTERS[id](by(id).value));
  by("role").disabled = !by("part").value;
  shown = images.filter((image) => tests.every((test) => test(image)));
  if (by("order").value) shown.sort(ORDERS[by("order").value]);
  by("count").value = `${shown.length.toLocaleString("en")} of ${images.length.toLocaleString("en")}`;
  lay();
  const top = by("images").offsetTop - by("filters").parentElement.offsetHeight;
  if (scrollY > top) scrollTo(0, top); // the first of what is shown now, not its middle
}

function offer() {
  const counts = new Map();
  for (const image of images) counts.set(image.label, (counts.get(image.label) || 0) + 1);
  const sorted = [...counts].sort(([a], [b]) => about.labels[a].localeCompare(about.labels[b]));
  by("label").append(...sorted.map(([label, count]) => new Option(`${about.labels[label]} (${count})`, label)));
  by("part").append(...about.parts.flatMap((part, index) => (part.merged ? [] : [new Option(partName(index) + (part.off ? " (off)" : part.background ? " (background)" : ""), index)])));
  const known = images.filter((image) => image.truth >= 0);
  by("correct").parentElement.hidden = !known.length;
  by("answer").parentElement.hidden = images.every((image) => image.answer === 0);
  const right = known.length - known.filter(isWrong).length;
  if (known.length) by("lede").append(` Of ${known.length.toLocaleString("en")} in folders named like a class, ${right.toLocaleString("en")} are right (${percent(right / known.length)}).`);
}

const partName = (index) => (about.parts[index].named ? `${index} ${about.parts[index].name}` : `part ${index}`);

// Grid ---------------------------------------------------------------------------------------------------------------

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) isIntersecting ? fill(target) : target.replaceChildren();
}, { rootMargin: "1200px 0px" });

function fill(chunk) {
  if (chunk.firstChild) return;
  chunk.append(...shown.slice(chunk.first, chunk.first + CHUNK).map((image, offset) => card(image, chunk.first + offset)));
}

function lay() {
  near.disconnect();
  const chunks = [];
  for (let first = 0; first < shown.length; first += CHUNK) chunks.push(Object.assign(element("div", "chunk"), { first }));
  by("images").replaceChildren(...(chunks.length ? chunks : [element("p", "none", images.length ? "No image fits these filters." : "No images yet.")]));
  measure();
  chunks.slice(0, 1).forEach(fill);
  chunks.forEach((chunk) => near.observe(chunk));
}

// Every chunk has its height before it has its cards, so that nothing moves while scrolling.
function measure() {
  const style = getComputedStyle(by("images"));
  const width = by("images").clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const gap = innerWidth <= 640 ? 10 : 14;
  const columns = Math.max(innerWidth <= 640 ? 2 : 1, Math.min(6, Math.floor((width + gap) / (NARROWEST + gap))));
  const height = Math.round((width - (columns - 1) * gap) / columns) * 0.8 + TEXT;
  by("images").style.setProperty("--columns", columns);
  for (const chunk of by("images").querySelectorAll(".chunk")) {
    const lines = Math.ceil(Math.min(CHUNK, shown.length - chunk.first) / columns);
    chunk.style.gridAutoRows = `${height}px`;
    chunk.style.height = `${lines * (height + gap) - gap}px`;
  }
}

function card(image, index) {
  const picture = Object.assign(element("img"), { loading: "lazy", decoding: "async", alt: "", src: file("thumbnails", image, "webp") });
  const below = isWrong(image) ? element("i", "truth", `is ${about.labels[image.truth]}`) : element("i", "", image.title);
  const made = element("button", isWrong(image) ? "card wrong" : "card", picture, element("b", "", about.labels[image.label]), element("span", "", below, element("em", "", percent(image.probability))));
  if (image.answer) below.after(element("small", "tag", about.answers[image.answer]));
  made.type = "button";
  made.title = `${about.labels[image.label]}\n${image.source}`;
  made.addEventListener("click", () => show(index));
  return made;
}

// Dialog -------------------------------------------------------------------------------------------------------------

let current = 0, versus = false;

// Where the tiles are in the picture that pictures.py draws: left, top, width and height in its pixels.
function places({ width, height }) {
  const { longest, tall, wide, column, margin, gap, top } = about.panel;
  const copy = Math.min(1, longest / Math.max(width, height));
  const [columns, rows] = [width, height].map((length) => Math.max(1, Math.round(length * copy)));
  const scale = Math.min(tall / rows, wide / columns);
  const size = [columns, rows].map((length) => Math.max(1, Math.round(length * scale))), step = Math.max(size[0], column) + gap;
  return [0, 1, 2].map((tile) => [margin + tile * step + Math.floor((step - gap - size[0]) / 2), top + Math.floor((tall - size[1]) / 2), ...size]);
}

function tiles(image) {
  const address = file("pictures", image, about.suffix), named = ["The image", "Its parts", "The attention on it"];
  [...by("dialog").querySelectorAll(".crop")].forEach((crop, tile) => {
    const picture = crop.firstElementChild, [left, top, width, height] = places(image)[tile];
    crop.style.setProperty("--ratio", width / height);
    picture.onload = () => Object.assign(picture.style, { width: `${(100 * picture.naturalWidth) / width}%`, left: `${(-100 * left) / width}%`, top: `${(-100 * top) / height}%` });
    picture.src = address;
    picture.alt = named[tile];
  });
  by("whole").href = address;
}

function show(index) {
  current = index;
  const image = shown[index];
  const { labels, answers } = about;
  by("dialog").classList.toggle("wrong", isWrong(image));
  by("title").replaceChildren(labels[image.label], " ", element("em", "", percent(image.probability)));
  const facts = [];
  if (image.answer) facts.push(`answer: ${answers[image.answer]}`);
  if (image.truth >= 0) facts.push(isWrong(image) ? `in truth: ${labels[image.truth]}` : "right");
  if (image.rival >= 0) facts.push(`rather than ${labels[image.rival]}, ${percent(image.rivalProbability)}`);
  if (image.seen < MOSTLY) facts.push(`the model saw only ${percent(image.seen, 0)} of the image`);
  if (image.place && image.place[3] !== image.label) facts.push(`by the image alone ${labels[image.place[3]]}`);
  by("facts").textContent = facts.join("; ");
  by("source").textContent = by("source").title = image.source;
  by("told").textContent = unbroken(image.summary);
  tiles(image);
  bars(image);
  by("previous").disabled = index === 0;
  by("next").disabled = index === shown.length - 1;
  if (!by("dialog").open) by("dialog").showModal();
  by("dialog").scrollTop = 0;
}

// What every part adds to the logit of the label; less what it adds to that of the rival, if that is asked for.
function bars(image) {
  const { labels, parts } = about, against = versus && image.rival >= 0;
  by("versus").hidden = image.rival < 0;
  by("versus").textContent = `Why not ${labels[image.rival]}?`;
  by("versus").setAttribute("aria-pressed", String(against));
  by("total").textContent = against ? "difference" : "logit";
  const adds = against ? image.adds.map((value, part) => value - image.rivalAdds[part]) : image.adds;
  const constant = image.constant - (against ? image.rivalConstant : 0);
  const place = image.place ? image.place[1] - (against ? image.place[2] : 0) : 0;
  const order = adds.map((_, part) => part).filter((part) => !parts[part].merged).sort((a, b) => adds[b] - adds[a]);
  const low = Math.min(0, constant, place, ...adds), high = Math.max(0, constant, place, ...adds);
  const scale = 100 / Math.max(high - low, NOTABLE);
  const bar = (name, value, color, ...rest) => {
    const span = element("span"), zero = element("i");
    Object.assign(span.style, { left: `${(Math.min(value, 0) - low) * scale}%`, width: `${Math.abs(value) * scale}%`, background: color });
    zero.style.left = `${-low * scale}%`;
    const head = element("th", "", ...name);
    head.scope = "row";
    return element("tr", "", head, element("td", "track", zero, span), element("td", "", signed(value)), ...rest);
  };
  by("bars").replaceChildren(
    ...order.map((part) => {
      const badge = element("span", parts[part].background || parts[part].off ? "badge hollow" : "badge", String(part)), thumb = element("span", "thumb");
      badge.style.setProperty("--c", parts[part].color);
      badge.style.setProperty("--i", parts[part].ink);
      thumb.style.setProperty("--k", part);
      const name = (parts[part].named ? parts[part].name : "") + (parts[part].off ? " (off)" : "");
      return bar([badge, thumb, name], adds[part], parts[part].color, element("td", "", percent(image.attention[part], 0)), element("td", "occurs", percent(image.occurrence[part], 0)));
    }),
    ...(image.place ? [bar([image.place[0]], place, "", element("td"), element("td", "occurs"))] : []),
    bar(["constant"], constant, "", element("td"), element("td", "occurs")),
  );
  by("logit").textContent = signed(adds.reduce((sum, value) => sum + value, constant + place));
}

by("versus").addEventListener("click", () => {
  versus = !versus;
  bars(shown[current]);
});
const step = (offset) => { if (shown[current + offset]) show(current + offset); };
by("previous").addEventListener("click", () => step(-1));
by("next").addEventListener("click", () => step(1));
by("close").addEventListener("click", () => by("dialog").close());
by("dialog").addEventListener("click", (event) => { if (event.target === by("dialog")) by("dialog").close(); });
by("dialog").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});

let waiting = 0;
by("filters").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 60); });
by("filters").addEventListener("reset", () => setTimeout(filter));
by("filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("resize", measure);
offer();
filter();
