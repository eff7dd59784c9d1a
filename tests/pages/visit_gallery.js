// What a visitor of the gallery does; says on the console what there is to see.
{
const opened = performance.now();
const id = (name) => document.getElementById(name);
const cards = () => document.querySelectorAll(".card").length;
const wait = () => new Promise((done) => setTimeout(done, 400));
const set = async (name, value) => {
  id(name).value = value;
  id(name).dispatchEvent(new Event("input", { bubbles: true }));
  await wait();
};
const found = { opened };
const FILTERED = [
  ["label", "0"], ["part", "2"], ["role", "occurs"], ["role", "lacks"], ["least", "25"], ["most", "75"],
  ["answer", "1"], ["correct", "wrong"], ["correct", "open"], ["find", "77 WREN"],
];
const visit = async () => {
  await wait();
  found.count = id("count").textContent;
  found.cards = cards();
  found.painted = document.querySelector(".card img").naturalWidth;
  found.height = document.body.scrollHeight;
  scrollTo(0, found.height / 2); await wait();
  found.middle = cards();
  found.same = document.body.scrollHeight === found.height;
  found.filters = {};
  for (const [name, value] of FILTERED) {
    await set(name, value);
    found.filters[`${name}=${value}`] = id("count").textContent;
    if (name !== "role" && name !== "part" || value === "lacks") { id("filters").reset(); await wait(); }
  }
  await set("order", "least");
  found.first = document.querySelector(".card").title;
  await set("order", "surest");
  document.querySelector(".card").focus();
  document.activeElement.click(); await wait();
  found.title = id("title").textContent;
  found.source = id("source").textContent;
  found.told = id("told").textContent;
  found.picture = id("picture").naturalWidth;
  found.rows = [...id("bars").rows].map((row) => row.cells[0].textContent + row.cells[2].textContent);
  found.versus = id("versus").textContent;
  id("versus").click();
  found.against = [...id("bars").rows].map((row) => row.cells[2].textContent);
  id("versus").click();
  found.logit = id("logit").textContent;
  id("dialog").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true })); await wait();
  found.second = id("source").textContent;
  id("close").click();
  found.closed = !id("dialog").open;
  await set("find", "nothing is called so");
  found.nothing = id("images").textContent;
  const protocols = performance.getEntriesByType("resource").map((entry) => new URL(entry.name).protocol);
  found.fetched = protocols.filter((name) => name !== "file:" && name !== "data:");
  console.log("FOUND" + btoa(unescape(encodeURIComponent(JSON.stringify(found)))));
};
visit();
}
