"use strict";
// Without this script the page is whole: its controls work by CSS alone. The script adds values on hovering and by
// keyboard, all of a record in a click, the table of all records, and the view in the address.
(() => {
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
document.documentElement.classList.add("js");

const data = JSON.parse($("#data").textContent);
const columns = data.columns;
const count = columns.impl ? columns.impl.length : 0;
const value = (name, r) => { const column = columns[name]; const got = column ? column[r] : null; return got === undefined ? null : got; };

// Elements are made, never parsed: names come from strangers.
function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, given] of Object.entries(attributes)) if (given !== null) element.setAttribute(name, given);
  return element;
}

// Numbers as the figures write them: three significant digits, the next unit at 1000.
function digits(x, places = 3) {
  if (x === 0) return "0";
  const rounded = Number(x.toPrecision(places));
  const decimals = Math.max(0, places - 1 - Math.floor(Math.log10(Math.abs(rounded))));
  return rounded.toFixed(Math.min(decimals, 12));
}
function scaled(x, step, units) {
  let unit = 0;
  while (unit < units.length - 1 && Math.abs(x) >= step * (1 - 0.0005)) { x /= step; unit += 1; }
  return digits(x) + " " + units[unit];
}
const shows = {
  seconds: x => scaled(x * 1e9, 1000, ["ns", "µs", "ms", "s"]),
  bytes: x => scaled(x, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]),
  times: x => digits(x, x < 100 ? 2 : 3) + "×",
  share: x => digits(100 * x, x < 1 ? 2 : 3) + " %",
  percent: x => digits(x) + " %",
  micro: x => digits(x) + " µs",
  count: x => String(x),
  digits: x => digits(x),
};
const kinds = Object.fromEntries(data.numbers.map(([name, , kind]) => [name, kind]));
const shown = (name, r) => { const x = value(name, r); return x === null ? "" : shows[kinds[name]](x); };

const record = r => ({
  impl: data.implementations[columns.impl[r]],
  run: data.runs[columns.run[r]],
  problem: data.problems[columns.problem[r]],
  direction: data.directions[columns.direction[r]],
  status: data.statuses[columns.status[r]],
  reason: value("reason", r) === null ? "" : data.reasons[columns.reason[r]],
});
const series = r => record(r).impl + (data.runs.length > 1 ? " · " + record(r).run : "");
function kernels(r) {
  const flat = value("kernels", r) || [];
  const found = [];
  for (let k = 0; k < flat.length; k += 3) found.push([data.kernels[flat[k]], flat[k + 1], flat[k + 2]]);
  return found;
}
const spread = r => value("time_p10", r) === null ? "" : shown("time_p10", r) + " – " + shown("time_p90", r);

// ---------------------------------------------------------------- what a mark or a cell says
const tip = $("#tip");
let lit = null;
function fill(r) {
  const it = record(r);
  const lines = [];
  if (value("time", r) !== null) lines.push(`${shown("time", r)}, p10–p90 ${spread(r)}` + (value("speedup", r) === null ? "" : ` · ${shown("speedup", r)}`));
  if (value("tflops", r) !== null) lines.push(`${shown("tflops", r)} TFLOP/s`);
  if (value("memory", r) !== null) lines.push(`${shown("memory", r)} at the peak` + (value("memory_share", r) === null ? "" : ` · ${shown("memory_share", r)}`));
  if (it.status[0] !== "ok") lines.push(it.status[1] + (it.reason ? ": " + it.reason : ""));
  tip.replaceChildren(make("b", series(r)), ...lines.map(line => make("p", line)), make("p", `${it.direction[1]}, ${it.problem[1]}`, { class: "faint" }));
  const button = make("button", "All of this record", { type: "button" });
  button.addEventListener("click", () => open(r));
  tip.append(button);
}
// What stands for more than one record, such as a median over many, has a sentence of its own.
function tell(text) { tip.replaceChildren(make("p", text)); }
const told = new Map();
function show(element, pinned = false) {
  const r = numbered(element);
  if (r === null && !told.has(element)) return;
  if (lit) lit.classList.remove("on");
  lit = element;
  lit.classList.add("on");
  if (r === null) tell(told.get(element)); else fill(r);
  tip.hidden = false;
  tip.classList.toggle("pinned", pinned);
  const box = element.getBoundingClientRect(), own = tip.getBoundingClientRect(), page = document.documentElement;
  const left = Math.max(8, Math.min(box.left + box.width / 2 + 12, page.clientWidth - own.width - 8));
  const below = box.bottom + 10 + own.height < page.clientHeight;
  tip.style.left = left + scrollX + "px";
  tip.style.top = (below ? box.bottom + 10 : Math.max(4, box.top - own.height - 10)) + scrollY + "px";
}
function hide() {
  if (lit) lit.classList.remove("on");
  lit = null;
  tip.hidden = true;
}
const visible = element => element.getClientRects().length > 0;
const points = plot => $$("[data-r],[data-told]", plot).filter(visible);
// The record of a mark or a cell, unless the page was too small for it.
function numbered(element) {
  const r = element.hasAttribute("data-r") ? Number(element.getAttribute("data-r")) : count;
  return r < count ? r : null;
}

function nearest(plot, x, y) {
  let best = null, least = 26 ** 2;  // a thumb's reach
  for (const point of points(plot)) {
    const box = point.getBoundingClientRect();
    const dx = Math.max(box.left - x, 0, x - box.right), dy = Math.max(box.top - y, 0, y - box.bottom);
    const far = dx * dx + dy * dy + 0.01 * ((box.left + box.width / 2 - x) ** 2 + (box.top + box.height / 2 - y) ** 2);
    if (far < least) [best, least] = [point, far];
  }
  return best;
}
for (const plot of $$("svg.panel")) {
  for (const title of $$("title", plot)) {  // a tip says it in their place
    const mark = title.parentElement;
    if (!$("[data-r]", mark)) { told.set(mark, title.textContent); mark.setAttribute("data-told", ""); }
    title.remove();
  }
  if (!$("[data-r],[data-told]", plot)) continue;
  plot.setAttribute("tabindex", "0");
  plot.setAttribute("aria-describedby", "keys");
  plot.addEventListener("pointermove", event => {
    if (event.pointerType === "touch") return;
    const point = nearest(plot, event.clientX, event.clientY);
    if (point && point !== lit) show(point); else if (!point) hide();
  });
  plot.addEventListener("pointerleave", event => { if (event.pointerType !== "touch" && !tip.classList.contains("pinned")) hide(); });
  plot.addEventListener("click", event => {
    const point = nearest(plot, event.clientX, event.clientY);
    if (!point) return hide();
    if (event.pointerType === "touch" || numbered(point) === null) show(point, true); else open(numbered(point));
  });
  plot.addEventListener("blur", () => { if (!tip.classList.contains("pinned")) hide(); });
  plot.addEventListener("keydown", event => {
    const all = points(plot);
    if (!all.length) return;
    const owner = point => point.closest("[data-i]") || point;
    const here = lit && all.includes(lit) ? lit : null;
    let next = null;
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const step = event.key === "ArrowRight" ? 1 : -1;
      next = here ? all[(all.indexOf(here) + step + all.length) % all.length] : all[step > 0 ? 0 : all.length - 1];
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const groups = [...new Set(all.map(owner))];
      const at = here ? groups.indexOf(owner(here)) : -1;
      const group = groups[(at + (event.key === "ArrowDown" ? 1 : -1) + groups.length) % groups.length];
      const place = here ? all.filter(p => owner(p) === owner(here)).indexOf(here) : 0;
      const others = all.filter(p => owner(p) === group);
      next = others[Math.min(place, others.length - 1)];
    } else if (event.key === "Enter" && here && numbered(here) !== null) open(numbered(here));
    else if (event.key !== "Home" && event.key !== "End") return;
    else next = all[event.key === "Home" ? 0 : all.length - 1];
    event.preventDefault();
    if (next) show(next);
  });
}
document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
document.addEventListener("pointerdown", event => { if (!tip.contains(event.target) && !event.target.closest("svg.panel")) hide(); });
document.addEventListener("click", event => {
  const cell = event.target.closest("td[data-r]");
  if (cell && numbered(cell) !== null) open(numbered(cell));
});

// ---------------------------------------------------------------- all of one record
const dialog = $("#record");
function open(r) {
  if (!(r < count)) return;
  hide();
  const it = record(r), list = make("dl");
  const pairs = [["Problem", `${it.problem[1]} (${it.problem[0]})`], ["Direction", it.direction[1]], ["Status", it.status[1]]];
  if (data.runs.length > 1) pairs.unshift(["Run", it.run]);
  if (it.reason) pairs.push(["Reason", it.reason]);
  for (const [name, label] of data.numbers) if (value(name, r) !== null) pairs.push([label, shown(name, r)]);
  for (const [name, label, found] of data.texts) if (value(name, r) !== null) pairs.push([label, found[value(name, r)]]);
  for (const [name, text] of pairs) list.append(make("dt", name), make("dd", text));
  const body = $("#record-body");
  $("#record-title").textContent = it.impl;
  body.replaceChildren(list);
  const found = kernels(r);
  if (found.length) {
    const table = make("table"), head = make("tr"), rows = make("tbody");
    for (const name of ["Kernel", "Share", "Count"]) head.append(make("th", name, { scope: "col", class: name === "Kernel" ? "text" : null }));
    for (const [name, share, times] of found) {
      const row = make("tr");
      const heading = make("th", name, { scope: "row" });
      heading.style.whiteSpace = "normal";
      row.append(heading, make("td", share === null ? "" : shows.share(share)), make("td", times === null ? "" : String(times)));
      rows.append(row);
    }
    const top = make("thead");
    top.append(head);
    table.append(make("caption", "Kernels of one call, by share of their time"), top, rows);
    body.append(table);
  } else body.append(make("p", "No kernel names were recorded.", { class: "note" }));
  dialog.showModal();
}
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });

// ---------------------------------------------------------------- the table of all records
const table = $("#table"), query = $("#query"), PAGE = 50;
let sort = ["", 1], limit = PAGE;
const heads = [
  ["impl", "Implementation", r => columns.impl[r], "text"],
  ...(data.runs.length > 1 ? [["run", "Run", r => columns.run[r], "text"]] : []),
  ["problem", "Problem", r => columns.problem[r], "text"],
  ["direction", "Direction", r => columns.direction[r], "text"],
  ["status", "Status", r => columns.status[r], "text"],
  ...[["time", "Time"], ["spread", "p10–p90"], ["speedup", "Speed-up"], ["tflops", "TFLOP/s"], ["memory", "Memory"], ["memory_share", "Share"]]
    .map(([name, label]) => [name, label, r => name === "spread" ? (value("time_p90", r) || 0) - (value("time_p10", r) || 0) : value(name, r), ""]),
  ["kernel", "First kernel, or reason", r => (kernels(r)[0] || [record(r).reason])[0], "long text"],
];
const texts = [];
function text(r) {
  if (texts[r] === undefined) {
    const it = record(r);
    texts[r] = [it.impl, it.run, ...it.problem, ...it.direction, ...it.status, it.reason, ...kernels(r).map(kernel => kernel[0])].join(" ").toLowerCase();
  }
  return texts[r];
}
function cell(name, r) {
  const it = record(r);
  if (name === "spread") return spread(r);
  if (name === "kernel") return (kernels(r)[0] || [it.reason])[0];
  return { run: it.run, problem: it.problem[0], direction: it.direction[1], status: it.status[1] }[name] ?? shown(name, r);
}
function list() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  const direction = chosen("direction"), mask = chosen("mask");
  const off = new Set($$("#implementations input").filter(box => !box.checked).map(box => Number(box.id.slice(5))));
  const away = new Set($$("#runs input").filter(box => !box.checked).map(box => Number(box.id.slice(4))));
  let rows = [];
  for (let r = 0; r < count; r += 1) {
    if (off.has(columns.impl[r]) || away.has(columns.run[r])) continue;
    if (direction && data.directions[columns.direction[r]][0] !== direction) continue;
    if (mask && mask !== "all" && data.problems[columns.problem[r]][2] !== mask) continue;
    if (words.every(word => text(r).includes(word))) rows.push(r);
  }
  const head = heads.find(([name]) => name === sort[0]);
  if (head) {
    const keys = new Map(rows.map(r => [r, head[2](r)]));
    const compare = (a, b) => typeof a === "string" ? a.localeCompare(b) : a - b;
    const empty = x => x === null || x === undefined || x === "";
    // What has no value comes last in both orders.
    rows.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      return empty(x) || empty(y) ? empty(x) - empty(y) : sort[1] * compare(x, y) || a - b;
    });
  }
  for (const th of $$("thead th", table)) th.setAttribute("aria-sort", th.dataset.name === sort[0] ? (sort[1] > 0 ? "ascending" : "descending") : "none");
  $("tbody", table).replaceChildren(...rows.slice(0, limit).map(r => {
    const row = make("tr");
    for (const [name, , , kind] of heads) {
      if (name === "impl") {
        const heading = make("th", null, { scope: "row" }), button = make("button", record(r).impl, { type: "button", title: "All of this record" });
        button.addEventListener("click", () => open(r));
        heading.append(button);
        row.append(heading);
      } else row.append(make("td", cell(name, r), { class: kind || null }));
    }
    return row;
  }));
  const total = count + data.left_out;
  $("#found").textContent = `${rows.length.toLocaleString("en")} of ${total.toLocaleString("en")} records` + (data.left_out ? `; the page holds the first ${count.toLocaleString("en")}` : "");
  $("#more").hidden = rows.length <= limit;
}
for (const [name, label, , kind] of heads) {
  const th = make("th", null, { scope: "col", class: kind || null, "data-name": name, "aria-sort": "none" }), button = make("button", label, { type: "button" });
  button.addEventListener("click", () => { sort = [name, sort[0] === name ? -sort[1] : 1]; list(); keep(); });
  th.append(button);
  $("thead tr", table).append(th);
}
$("#more").addEventListener("click", () => { limit += 4 * PAGE; list(); });
query.addEventListener("input", () => { limit = PAGE; list(); keep(); });

// ---------------------------------------------------------------- the view, and its address
const form = $("#choices");
const radios = [...new Set($$("input[type=radio]", form).map(radio => radio.name))];
const boxes = { hide: $$("#implementations input"), without: $$("#runs input") };
function chosen(name) { const radio = form.elements[name]; return radio ? radio.value : null; }
let at = "";

function address() {
  const parts = [];
  for (const name of radios) if (!form.elements[name][0].checked) parts.push(`${name}=${encodeURIComponent(chosen(name))}`);
  for (const [name, all] of Object.entries(boxes)) {
    const off = all.filter(box => !box.checked).map(box => encodeURIComponent(box.dataset.name));
    if (off.length) parts.push(`${name}=${off.join(",")}`);
  }
  if (query.value) parts.push(`find=${encodeURIComponent(query.value)}`);
  if (sort[0]) parts.push(`sort=${sort[1] < 0 ? "-" : ""}${sort[0]}`);
  if (!parts.length) return at;
  return [...parts, ...(at ? [`to=${at}`] : [])].join("&");
}
function decoded(part) { try { return decodeURIComponent(part); } catch { return part; } }
function read(jump) {
  const raw = location.hash.slice(1), given = new Map();
  if (raw.includes("=")) for (const part of raw.split("&")) given.set(part.split("=")[0], part.slice(part.indexOf("=") + 1));
  else given.set("to", raw);
  for (const name of radios) {
    const wanted = decoded(given.get(name) || "");
    const all = [...form.elements[name]];
    (all.find(radio => radio.value === wanted) || all[0]).checked = true;
  }
  for (const [name, all] of Object.entries(boxes)) {
    const off = new Set((given.get(name) || "").split(",").filter(Boolean).map(decoded));
    for (const box of all) box.checked = !off.has(box.dataset.name);
  }
  query.value = decoded(given.get("find") || "");
  const order = given.get("sort") || "";
  sort = [order.replace(/^-/, ""), order.startsWith("-") ? -1 : 1];
  if (!heads.some(([name]) => name === sort[0])) sort = ["", 1];
  at = decoded(given.get("to") || "");
  refresh();
  if (jump && at) go(at);
}
function go(id) {
  const section = document.getElementById(id);
  if (!section) return;
  section.scrollIntoView();
  section.focus({ preventScroll: true });
}
function refresh() {
  hide();
  // First all is looked at, then changed: a look after each change would lay out the page again every time.
  const notes = $$("main > section > .nothing").map(note => [note, $$("figure", note.parentElement)]).filter(([, figures]) => figures.length);
  const empty = notes.map(([note, figures]) => visible(note.parentElement) && !figures.some(visible));
  notes.forEach(([note], n) => { note.hidden = !empty[n]; });
  const said = $$("fieldset.pills", form).filter(set => !$("#theme-auto", set)).map(set => $("input:checked", set)).filter(radio => radio.value !== "all").map(radio => radio.nextElementSibling.textContent);
  for (const [name, all] of Object.entries(boxes)) {
    const on = all.filter(box => box.checked).length;
    if (on < all.length) said.push(`${on} of ${all.length} ${name === "hide" ? "implementations" : "runs"}`);
  }
  $("#now").textContent = said.length ? "Shown: " + said.join(" · ") : "Sections";
  list();
}
function changed() {
  refresh();
  keep();
}
function keep() { history.replaceState(null, "", "#" + address()); }
form.addEventListener("change", () => { limit = PAGE; changed(); });
form.addEventListener("submit", event => event.preventDefault());
for (const button of $$("[data-all]")) button.addEventListener("click", () => { for (const box of boxes.hide) box.checked = Boolean(button.dataset.all); changed(); });
$("#reset").addEventListener("click", () => { form.reset(); query.value = ""; sort = ["", 1]; at = ""; changed(); });
$("#link").addEventListener("click", async event => {
  keep();
  let words = "Copied";
  try { await navigator.clipboard.writeText(location.href); } catch { words = "It is in the address bar"; }
  event.target.textContent = words;
  setTimeout(() => { event.target.textContent = "Copy link"; }, 2500);
});
for (const link of $$("a[href^='#']")) link.addEventListener("click", event => {
  event.preventDefault();
  at = link.getAttribute("href").slice(1);
  history.pushState(null, "", "#" + address());
  if (narrow.matches && link.closest("nav")) $("#side").open = false;
  go(at);
});
window.addEventListener("hashchange", () => read(true));

// On a phone the panel is closed until it is asked for; on a desk it stands beside the page.
const narrow = matchMedia("(max-width: 63.99rem)");
const arrange = () => { $("#side").open = !narrow.matches; };
narrow.addEventListener("change", arrange);
arrange();
window.addEventListener("beforeprint", () => { for (const details of $$("details.print")) details.open = true; });

const links = new Map($$("nav ol a").map(link => [link.getAttribute("href").slice(1), link]));
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) {
    const link = links.get(entry.target.id);
    if (!link || !entry.isIntersecting) continue;
    for (const other of links.values()) other.removeAttribute("aria-current");
    link.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-20% 0px -70% 0px" });
for (const section of $$("main > section")) seen.observe(section);

read(true);
})();
