// The page of rg/server/app.py: sends photos to POST explain, one request each, and shows what comes back.

const AT_ONCE = 2; // requests
const ROWS = 8; // parts that are shown one by one at first
const OPEN = 16; // parts up to which the buttons that switch them off are unfolded
const NEAR = 6; // pixels of the part map from an edge at which a number stands well
const FORMATS = { WEBP: "WebP" }; // written otherwise than in capitals
const LAYERS = { parts: "Parts", photo: "Photo", attribution: "Attention", zoom: "Zoom" };

const $ = (id) => document.getElementById(id);
const model = await (await fetch("model")).json();
const queue = [];
let running = 0, cards = 0, asked = 0, done = 0;

function make(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

const called = (part) => (part.named ? part.name : `part ${part.part}`);
const told = ({ located, dated }) => (located && dated ? "place and date" : located ? "place" : "date");
const capital = (text) => text[0].toUpperCase() + text.slice(1);

// What is known of where and when the next photos were taken.
const where = () => Object.fromEntries([...$("where").querySelectorAll("input")].filter((input) => input.value.trim()).map(({ name, value }) => [name, value.trim()]));

function badge(part) {
  const { color, ink } = model.parts[part];
  const made = make("span", model.parts[part].background || model.parts[part].off ? "badge hollow" : "badge", String(part));
  made.style.setProperty("--c", color);
  made.style.setProperty("--i", ink);
  return made;
}

// What a part looks like, in an image in which it occurs surely.
function thumb(part) {
  if (!model.part_pictures) return [];
  const made = make("span", "thumb"), count = model.parts.length;
  made.setAttribute("aria-hidden", "true");
  made.style.backgroundImage = `url("${model.part_pictures}")`;
  made.style.backgroundSize = `${100 * count}% 100%`;
  made.style.backgroundPosition = `${(100 * part) / Math.max(count - 1, 1)}% 0`;
  return [made];
}

function download(blob, name) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function ask(card, query) {
  const { file } = card;
  const form = new FormData();
  form.append("file", file, file.name || "photo");
  for (;;) {
    let response;
    try {
      response = await fetch(`explain?${new URLSearchParams({ ...query, ...card.place })}`, { method: "POST", body: form });
    } catch {
      throw new Error("The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status !== 503) throw new Error(capital((await response.json().catch(() => ({}))).error || `error ${response.status}`));
    await new Promise((resume) => setTimeout(resume, 1000 * Number(response.headers.get("Retry-After") || 2)));
    if (card.removed) throw new Error("Removed");
  }
}

function radios(fieldset, group, choices, change) {
  fieldset.replaceChildren(fieldset.querySelector("legend"));
  for (const [value, text, checked] of choices) {
    const label = make("label"), input = make("input");
    Object.assign(input, { type: "radio", name: group, value, checked });
    input.addEventListener("change", () => change(value));
    label.append(input, make("span", "", text));
    fieldset.append(label);
  }
}

// One photo and what the model says about it.
class Card {
  constructor(file) {
    this.file = file;
    this.place = where(); // as it stands when the photo is given
    this.number = ++cards;
    this.layer = "parts";
    this.side = "label";
    this.lit = this.pinned = null;
    this.off = new Set(); // parts that are switched off here
    this.all = false;
    this.root = $("card").content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.root.querySelector(selector);
    this.root.classList.add("waiting");
    this.find("h2").textContent = this.find("h2").title = file.name || "Pasted photo";
    this.root.setAttribute("aria-label", file.name || "Pasted photo");
    this.find(".remove").setAttribute("aria-label", `Remove ${file.name || "pasted photo"}`);
    this.find(".remove").addEventListener("click", () => this.remove());
    this.find("img").src = URL.createObjectURL(file);
    this.find("img").addEventListener("load", ({ target }) => this.find(".stage").style.setProperty("--ratio", target.naturalWidth / target.naturalHeight));
    this.find("img").addEventListener("error", () => this.find("img").removeAttribute("src"), { once: true });
  }

  async run() {
    try {
      const { pictures, choices, ...whole } = await (await ask(this, { pictures: true })).json();
      Object.assign(this, { pictures, choices, whole, answer: whole });
      this.show();
    } catch (error) {
      this.fail(error.message);
    }
  }

  fail(reason) {
    this.root.classList.replace("waiting", "failed");
    this.find(".progress").textContent = `This photo could not be explained. ${reason}.`.replace(/([.?!])\.$/, "$1");
  }

  remove() {
    const next = this.root.nextElementSibling || this.root.previousElementSibling;
    this.removed = true;
    this.root.remove();
    (next || $("files")).focus();
    document.body.classList.toggle("has-answers", Boolean($("answers").children.length));
  }

  show() {
    const { answer } = this, map = this.pictures.part_map;
    URL.revokeObjectURL(this.find("img").src);
    this.map = new Int8Array(map.width * map.height);
    for (let i = 0, at = 0; i < map.runs.length; i += 2) this.map.fill(map.runs[i], at, (at += map.runs[i + 1]));
    this.root.classList.remove("waiting");
    this.find(".progress").hidden = true;
    this.root.setAttribute("aria-label", `${this.find("h2").textContent}: ${answer.label}`);
    this.verdict();
    radios(this.find(".layers"), `layer${this.number}`, Object.entries(LAYERS).filter(([value]) => value !== "zoom" || this.pictures.zoom).map(([value, text]) => [value, text, value === this.layer]), (layer) => {
      this.layer = layer;
      this.draw();
    });
    this.listen();
    this.offer();
    this.why();
    this.draw();
  }

  // A button for every part that counts, to switch it off and on.
  offer() {
    const counting = this.choices ? model.parts.filter(({ part }) => this.choices.contributions.some((adds) => adds[part])) : [];
    this.find(".what-if").hidden = !counting.length;
    this.find(".what-if").open = counting.length <= OPEN;
    this.find(".toggles").replaceChildren(...counting.map((part) => {
      const button = make("button", "toggle");
      button.type = "button";
      button.dataset.part = part.part;
      button.append(badge(part.part), ...thumb(part.part));
      if (part.named) button.append(make("span", "", part.name));
      button.setAttribute("aria-label", capital(called(part)));
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => this.toggle(part.part));
      return button;
    }));
  }

  toggle(part) {
    if (!this.off.delete(part)) this.off.add(part);
    this.answer = this.off.size ? this.edited(this.side === "rival" ? this.answer.rival?.label : undefined) : this.whole;
    for (const button of this.root.querySelectorAll(".toggle")) button.setAttribute("aria-pressed", String(!this.off.has(Number(button.dataset.part))));
    const { whole } = this, names = [...this.off].sort((a, b) => a - b).map((one) => called(model.parts[one]));
    this.find(".without").textContent = names.length ? `${offInWords(names, this.choices)}: ${this.answer.label}, ${percent(this.answer.probability)}. With all parts: ${whole.label}, ${percent(whole.probability)}.` : "";
    this.verdict();
    this.why();
    this.draw();
  }

  // The answer with parts off, compared with a class, or with the runner-up. Whether to withhold it was fitted with all parts.
  edited(versus) {
    const { choices, off, whole } = this, [best, ...others] = answersWithout(choices, off);
    const rival = others.find(({ label }) => label === versus) ?? others[0];
    const adds = ({ number }, part) => (off.has(part) ? 0 : choices.contributions[number][part]);
    const parts = whole.parts.map((one) => ({
      ...one,
      attention: off.has(one.part) ? 0 : one.attention,
      contribution: adds(best, one.part),
      rival_contribution: rival ? adds(rival, one.part) : 0,
    }));
    const constant = ({ number }) => choices.constants[number], placed = ({ number }) => choices.places[number];
    const [alone] = choices.places ? [best, ...others].sort((a, b) => b.logit - placed(b) - a.logit + placed(a)) : [];
    const place = alone ? { ...whole.place, contribution: placed(best), rival_contribution: rival ? placed(rival) : 0, label_without: alone.label } : null;
    return { ...whole, ...best, answer: "label", summary: "", place, constant: constant(best), rival: rival ? { ...rival, constant: constant(rival) } : null, parts, top_k: [best, ...others].slice(0, whole.top_k.length) };
  }

  verdict() {
    const { answer } = this, notice = this.find(".notice");
    const said = {
      unknown: ["The model does not know this.", "No part that it knows fits what the photo shows. If it has to guess, it says:"],
      unsure: ["The model is not sure.", "Its best guess is less likely than it takes to stand by it:"],
    }[answer.answer];
    this.root.classList.toggle("doubtful", Boolean(said));
    notice.hidden = !said;
    if (said) notice.replaceChildren(make("b", "", said[0]), said[1]);
    this.find(".label").textContent = answer.label;
    this.find(".probability").textContent = percent(answer.probability);
    const alone = answer.place && answer.place.label_without !== answer.label;
    this.find(".alone").hidden = !alone;
    if (alone) this.find(".alone").textContent = `By the photo alone, without ${told(answer.place)}: ${answer.place.label_without}.`;
    this.find(".best").replaceChildren(...answer.top_k.map(({ label, probability }) => {
      const row = make("li"), name = make("span", "name", label), meter = make("span", "meter"), fill = make("span");
      meter.setAttribute("aria-hidden", "true");
      fill.style.width = `${100 * probability}%`;
      meter.append(fill);
      if (label !== answer.label) {
        const button = make("button", "link", "why not?");
        button.type = "button";
        button.setAttribute("aria-label", `Why not ${label}?`);
        button.addEventListener("click", () => this.compare(label));
        name.append(button);
      }
      row.append(name, meter, make("span", "share", percent(probability)));
      return row;
    }));
  }

  async compare(label) {
    if (this.off.size) this.answer = this.edited(label);
    else if (this.answer.rival?.label !== label) {
      this.find(".summary").textContent = `Comparing with ${label} …`;
      try {
        this.whole = await (await ask(this, { versus: label })).json();
        this.answer = this.off.size ? this.edited(label) : this.whole;
      } catch (error) {
        this.find(".summary").textContent = error.message;
        return;
      }
    }
    this.side = "rival";
    this.why();
  }

  value(part) {
    return part.contribution - (this.side === "rival" ? part.rival_contribution : 0);
  }

  // The bars, for the label or against its rival.
  why() {
    const { answer } = this, rival = this.side === "rival" ? answer.rival : null;
    this.find(".told").textContent = unbroken(answer.summary);
    const sides = [["label", "Why this?", !rival]];
    if (answer.rival) sides.push(["rival", `Why not ${answer.rival.label}?`, Boolean(rival)]);
    radios(this.find(".sides"), `side${this.number}`, sides, (side) => {
      this.side = side;
      this.why();
      this.find(".sides input:checked").focus();
    });
    const byWeight = answer.parts.filter((part) => part.merged_into === null).sort((a, b) => Math.abs(this.value(b)) - Math.abs(this.value(a)));
    const few = byWeight.length <= ROWS + 1;
    const shown = few || this.all ? byWeight : byWeight.slice(0, ROWS), rest = byWeight.slice(shown.length);
    const { place } = answer;
    const rows = shown.sort((a, b) => this.value(b) - this.value(a)).map((part) => [part, this.value(part), part.attention]);
    const sum = (values) => values.reduce((total, value) => total + value, 0);
    if (rest.length) rows.push([`${rest.length} more parts`, sum(rest.map((part) => this.value(part))), sum(rest.map((part) => part.attention))]);
    if (place) rows.push([told(place), place.contribution - (rival ? place.rival_contribution : 0), null]);
    rows.push(["constant", answer.constant - (rival ? rival.constant : 0), null]);
    const low = Math.min(0, ...rows.map((row) => row[1])), high = Math.max(0, ...rows.map((row) => row[1]));
    const span = Math.max(high - low, NOTABLE);
    this.find("caption").textContent = rival ? `What tells ${answer.label} from ${rival.label}` : `What speaks for ${answer.label}`;
    this.find(".adds").textContent = rival ? "Difference" : "Adds";
    this.find("tbody").replaceChildren(...rows.map(([part, value, attention]) => this.row(part, value, attention, low, span)));
    const total = this.find("tfoot tr").children;
    total[0].textContent = rival ? "Difference" : "Score (logit)";
    total[2].textContent = signed(answer.logit - (rival ? rival.logit : 0));
    const all = this.find(".all");
    all.hidden = few;
    all.textContent = this.all ? "Show fewer parts" : `Show all ${byWeight.length} parts`;
    all.setAttribute("aria-expanded", String(this.all));
    all.onclick = () => {
      this.all = !this.all;
      this.why();
    };
    this.find(".summary").textContent = this.summary(byWeight, rival);
    this.mark();
  }

  summary(byWeight, rival) {
    const { label } = this.answer, list = (parts) => parts.slice(0, 2).map((part) => `${called(part)} (${signed(this.value(part))})`).join(" and ");
    const object = byWeight.map((part) => ({ ...part, named: model.parts[part.part].named }));
    const pro = object.filter((part) => this.value(part) >= NOTABLE), contra = object.filter((part) => this.value(part) <= -NOTABLE);
    if (!pro.length && !contra.length) return rival ? "No part stands out: what tells them apart is spread over all of them." : "No part stands out.";
    const favour = pro.length ? `Most for ${label}: ${list(pro)}.` : `No part speaks for ${label}.`;
    const against = contra.length ? ` Most ${rival ? `for ${rival.label}` : "against it"}: ${list(contra)}.` : "";
    return favour + against;
  }

  row(part, value, attention, low, span) {
    const row = make("tr"), head = make("th"), track = make("td", "track"), zero = make("span", "zero"), bar = make("span", "bar");
    head.scope = "row";
    zero.style.left = `${(-100 * low) / span}%`;
    bar.style.left = `${(100 * (Math.min(value, 0) - low)) / span}%`;
    bar.style.width = `${(100 * Math.abs(value)) / span}%`;
    if (typeof part === "string") {
      head.append(make("small", "", part));
    } else {
      const about = model.parts[part.part], button = make("button", "pick");
      button.type = "button";
      button.append(badge(part.part), ...thumb(part.part));
      const off = about.off || this.off.has(part.part);
      if (about.named) button.append(make("span", "called", about.name));
      if (off) button.append(make("small", "", "off"));
      else if (about.background && !about.named) button.append(make("small", "", "background"));
      button.setAttribute("aria-label", `${capital(called(about))}${about.background ? ", background" : ""}: show in the photo`);
      button.addEventListener("click", () => this.pin(part.part));
      button.addEventListener("focus", () => this.light(part.part));
      button.addEventListener("blur", () => this.light(null));
      row.addEventListener("pointerenter", () => this.light(part.part));
      row.addEventListener("pointerleave", () => this.light(null));
      row.dataset.part = part.part;
      bar.style.background = about.color;
      head.append(button);
    }
    track.append(zero, bar);
    row.append(head, track, make("td", "", signed(value)), make("td", "", attention === null ? "" : percent(attention, 0)));
    return row;
  }

  listen() {
    const canvas = this.find("canvas"), { width, height } = this.pictures.part_map;
    const under = (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * width), y = Math.floor(((event.clientY - box.top) / box.height) * height);
      const part = x >= 0 && y >= 0 && x < width && y < height ? this.map[y * width + x] : -1;
      return part < 0 ? null : part;
    };
    canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && this.light(under(event)));
    canvas.addEventListener("pointerleave", () => this.light(null));
    canvas.addEventListener("click", (event) => this.pin(under(event)));
    const stem = (this.file.name || "photo").replace(/\.[^.]*$/, "");
    this.find(".json").addEventListener("click", () => {
      download(new Blob([JSON.stringify(this.whole, null, 1) + "\n"], { type: "application/json" }), `${stem}.json`);
    });
    this.find(".png").addEventListener("click", async (event) => {
      const button = event.currentTarget;
      button.disabled = true;
      try {
        const query = { format: "png", ...(this.whole.rival && { versus: this.whole.rival.label }) };
        download(await (await ask(this, query)).blob(), `${stem}.png`);
      } catch (error) {
        $("status").textContent = error.message;
      }
      button.disabled = false;
    });
  }

  pin(part) {
    this.pinned = this.pinned === part ? null : part;
    this.light(this.lit);
  }

  light(part) {
    this.lit = part;
    this.mark();
    this.draw();
  }

  // Which part is lit up, in the bars and in words.
  mark() {
    const lit = this.lit ?? this.pinned;
    for (const row of this.root.querySelectorAll("tr[data-part]")) {
      row.classList.toggle("lit", Number(row.dataset.part) === lit);
      row.querySelector("button").setAttribute("aria-pressed", String(Number(row.dataset.part) === this.pinned));
    }
    const caption = this.find("figcaption");
    if (lit === null) {
      const saw = this.answer.seen < MOSTLY ? `The model saw only ${percent(this.answer.seen, 0)} of the photo. ` : "";
      caption.textContent = `${saw}Point at a part, or tap it, here or in the bars: where it is, and what it argued for.`;
      return;
    }
    const part = this.answer.parts[lit], { label, rival } = this.answer;
    const side = (value, name) => `${signed(value)} for ${name}`;
    const both = [side(part.contribution, label), ...(rival ? [side(part.rival_contribution, rival.label)] : [])].join(", ");
    const about = `: ${both}; ${percent(part.attention, 0)} of the attention, ${percent(part.area, 0)} of what the model saw.`;
    caption.replaceChildren(badge(lit), " ", ...thumb(lit), " ", make("b", "", capital(called(model.parts[lit]))), about);
  }

  draw() {
    const { photo, attribution, zoom, part_map: { width, height } } = this.pictures;
    const image = this.find("img"), canvas = this.find("canvas"), source = { attribution, zoom }[this.layer] ?? photo;
    if (image.getAttribute("src") !== source) image.src = source;
    image.alt = `${this.find("h2").textContent}${{ attribution: ", under a heat map of the attention", zoom: ", under lines that the network saw evenly spaced" }[this.layer] ?? ""}`;
    Object.assign(canvas, { width, height });
    const lit = this.lit ?? this.pinned, { map } = this, context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
    const colors = model.parts.map(({ color }) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
    const put = (at, [red, green, blue], alpha) => pixels.data.set([red, green, blue, alpha], 4 * at);
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const part = map[at];
        const edge = [[-1, 0], [1, 0], [0, -1], [0, 1]].some(([dx, dy]) => x + dx >= 0 && x + dx < width && y + dy >= 0 && y + dy < height && map[at + dx + dy * width] !== part);
        if (lit !== null) {
          if (part === lit) put(at, colors[part], edge ? 255 : 0);
          else put(at, [12, 15, 18], 178);
        } else if (part < 0) put(at, [12, 15, 18], 178);
        else if (this.layer === "parts" && !this.plain(part)) put(at, colors[part], edge ? 255 : 84);
      }
    }
    context.putImageData(pixels, 0, 0);
    const marked = lit !== null ? [lit] : this.layer === "parts" ? model.parts.map(({ part }) => part).filter((part) => !this.plain(part)) : [];
    this.find(".marks").replaceChildren(...marked.flatMap((part) => this.numberAt(part)));
  }

  // Whether a part is shown like background: it is, or it is off.
  plain(part) {
    return model.parts[part].background || model.parts[part].off || this.off.has(part);
  }

  // Its number near the centre of a part, where the part is; none if it is too small.
  numberAt(part) {
    const { width, height } = this.answer, { map, pictures: { part_map: size } } = this;
    const center = this.answer.parts[part].center, cx = (center[0] / width) * size.width, cy = (center[1] / height) * size.height;
    let best = Infinity, place = null;
    for (let y = NEAR; y < size.height - NEAR; y += 2) {
      for (let x = NEAR; x < size.width - NEAR; x += 2) {
        const at = y * size.width + x, distance = (x - cx) ** 2 + (y - cy) ** 2;
        if (distance >= best || [0, -NEAR, NEAR, -NEAR * size.width, NEAR * size.width].some((step) => map[at + step] !== part)) continue;
        [best, place] = [distance, [x, y]];
      }
    }
    if (!place) return [];
    const made = badge(part);
    made.classList.remove("hollow");
    made.style.left = `${(100 * place[0]) / size.width}%`;
    made.style.top = `${(100 * place[1]) / size.height}%`;
    return [made];
  }
}

function take(files) {
  for (const file of files) {
    const card = new Card(file);
    $("answers").append(card.root);
    asked++;
    if (file.size > 1e6 * model.limits.megabytes) {
      card.fail(`It is larger than ${model.limits.megabytes} MB`);
      done++;
    } else queue.push(card);
  }
  if (!files.length) return;
  document.body.classList.add("has-answers");
  next();
}

async function next() {
  $("status").textContent = asked ? (done < asked ? `Looking at ${asked === 1 ? "the photo" : `${asked - done} of ${asked} photos`} …` : `${done === 1 ? "The photo is" : `All ${done} photos are`} done.`) : "";
  while (running < AT_ONCE && queue.length) {
    const card = queue.shift();
    running++;
    (card.removed ? Promise.resolve() : card.run()).finally(() => {
      running--;
      done++;
      next();
    });
  }
}

function offer() {
  $("samples").hidden = !model.samples.length;
  $("samples").querySelector("ul").replaceChildren(...model.samples.map((label, number) => {
    const item = make("li"), button = make("button"), image = make("img"), address = `samples/${number}`;
    button.type = "button";
    image.src = address;
    image.alt = "";
    button.append(image, label);
    button.addEventListener("click", async () => {
      try {
        const response = await fetch(address);
        if (!response.ok) throw new Error(`error ${response.status}`);
        take([new File([await response.blob()], `${label}.jpg`, { type: "image/jpeg" })]);
      } catch (error) {
        $("status").textContent = `This one cannot be had: ${error.message}.`;
      }
    });
    item.append(button);
    return item;
  }));
}

function listen() {
  offer();
  $("name").textContent = `, ${model.name}`;
  const { megabytes, megapixels, side } = model.limits, formats = model.formats.map((format) => FORMATS[format] || format);
  $("limits").textContent = `Each may be ${formats.slice(0, -1).join(", ")} or ${formats.at(-1)}, up to ${megabytes} MB and ${megapixels} megapixels; it is looked at with at most ${side} pixels a side.`;
  $("classes").hidden = false;
  $("classes").querySelector("summary").textContent = `What it knows: ${model.classes.length} ${model.multi_label ? "attributes" : "classes"}`;
  $("classes").querySelector("ul").replaceChildren(...model.classes.map((name) => make("li", "", name)));
  $("where").hidden = !model.places;
  $("switching").hidden = model.multi_label;
  $("files").disabled = false;
  $("files").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
  for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
}

listen();
