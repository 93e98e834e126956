// The table of all documents: sorted, filtered and opened by the reader, drawn on demand. No library.
// Texts are only ever put into the page as text (textContent), never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("controls");
  const table = document.getElementById("rows");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const STEP = 25;
  if (!data.sets.length || !data.models.length) return;

  // A filter takes one model's verdicts [K + 1] on a document (null: none), its texts and its cut marks.
  const last = (values) => values[values.length - 1];
  const FILTERS = {
    all: ["all documents", () => true],
    wins: ["last revision wins", (p) => last(p) !== null && last(p) > 0.5],
    losses: ["last revision loses", (p) => last(p) !== null && last(p) < 0.5],
    ties: ["last revision ties", (p) => last(p) === 0.5],
    gained: ["revision turns a loss into a win",
      (p) => p[0] !== null && p[0] < 0.5 && last(p) !== null && last(p) > 0.5],
    lost: ["revision turns a win into a loss",
      (p) => p[0] !== null && p[0] > 0.5 && last(p) !== null && last(p) < 0.5],
    missing: ["some verdict is missing", (p) => p.some((value) => value === null)],
    same: ["no revision changes anything", (p, texts) => texts.every((text) => text === texts[0])],
    cut: ["some completion is cut off", (p, texts, cut) => cut.some(Boolean)],
  };
  const state = { set: 0, view: 0, model: 0, show: "all", search: "", marks: true,
    sort: "order", down: false, shown: STEP, open: new Set() };

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "style") made.style.cssText = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== false) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  const rounded = (value) => (value === null ? "none" : value.toFixed(2).replace(/^-0\.00$/, "0.00"));
  const signed = (value) => {
    const text = Math.abs(value).toFixed(2);
    return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
  };
  const wordCount = (text) => (text.match(/\S+/g) || []).length;
  const swatch = (model) => element("span", { class: "swatch", style: `--colour: ${model.colour}` });

  // An entry of `written` is null where a revision equals the one before it.
  const textsOf = (set, model, i) => {
    const found = set.written[model];
    if (!found) return [];
    const texts = [];
    for (const text of found.texts[i]) texts.push(text === null ? last(texts) : text);
    return texts;
  };
  const cutOf = (set, model, i) => (set.written[model] && set.written[model].cut ? set.written[model].cut[i] : []);
  const tableOf = (set, model, judge, opponent) => data.tables.find((each) =>
    each.set === set && each.model === model && each.judge === judge && each.opponent === opponent);
  const view = () => data.views[state.view] || { judge: -1, opponent: "" };
  const verdicts = (model, i) => {
    const found = tableOf(state.set, model, view().judge, view().opponent);
    return found ? found.p[i] : null;
  };
  const models = () => data.models.map((_, m) => m).filter((m) => data.sets[state.set].written[m]);

  // Longest common subsequence of words: [kind, words] with kind 0 kept, 1 added, -1 dropped.
  const difference = (before, after) => {
    const a = before.match(/\S+\s*/g) || [], b = after.match(/\S+\s*/g) || [];
    const same = (x, y) => x.trim() === y.trim();
    let start = 0, end = 0;
    while (start < Math.min(a.length, b.length) && same(a[start], b[start])) start++;
    while (end < Math.min(a.length, b.length) - start
      && same(a[a.length - 1 - end], b[b.length - 1 - end])) end++;
    const x = a.slice(start, a.length - end), y = b.slice(start, b.length - end);
    const parts = b.slice(0, start).map((word) => [0, word]);
    if (x.length * y.length > 2e7) { // too long to align: all of it replaced
      parts.push([-1, x.join("")], [1, y.join("")]);
    } else {
      const width = y.length + 1, best = new Uint16Array((x.length + 1) * width);
      for (let i = x.length - 1; i >= 0; i--) {
        for (let j = y.length - 1; j >= 0; j--) {
          best[i * width + j] = same(x[i], y[j]) ? best[(i + 1) * width + j + 1] + 1
            : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
        }
      }
      let i = 0, j = 0;
      while (i < x.length || j < y.length) {
        if (i < x.length && j < y.length && same(x[i], y[j])) { parts.push([0, y[j]]); i++; j++; }
        else if (j >= y.length
          || (i < x.length && best[(i + 1) * width + j] >= best[i * width + j + 1])) parts.push([-1, x[i++]]);
        else parts.push([1, y[j++]]);
      }
    }
    return parts.concat(b.slice(b.length - end).map((word) => [0, word]));
  };
  const marked = (before, after) => {
    const box = element("div", { class: "text" });
    let kind = null, words = "";
    const flush = () => {
      if (!words) return;
      const body = words.trimEnd(), rest = words.slice(body.length);
      box.append(kind === 0 ? body : element(kind > 0 ? "ins" : "del", {}, body), rest || (kind < 0 ? " " : ""));
      words = "";
    };
    for (const [next, word] of difference(before, after)) {
      if (next !== kind) { flush(); kind = next; }
      words += /\s$/.test(word) ? word : word + (next < 0 ? " " : "");
    }
    flush();
    return box;
  };

  const judgement = (each, i, k) => {
    const p = each.p[i][k], judge = data.judges[each.judge];
    let text = `${judge} ${rounded(p)}`;
    if (p === null) text = `${judge}: no verdict (${each.missing[`${i},${k}`] || "unknown"})`;
    else if (each.orders && each.orders.every((order) => order[i][k] !== null)) {
      text += ` (${rounded(each.orders[0][i][k])} shown first, ${rounded(each.orders[1][i][k])} second)`;
    }
    return element("div", { class: "judged" },
      element("span", { class: p === null ? "bar none" : "bar", style: `--share: ${100 * (p || 0)}%` }),
      element("span", {}, text));
  };
  const revision = (m, i, k, texts, cut) => {
    const same = k > 0 && texts[k] === texts[k - 1];
    const notes = [`revision ${k}`, `${wordCount(texts[k])} words`, same ? "unchanged" : "", cut[k] ? "cut off" : ""];
    const opponent = view().opponent;
    return element("div", { class: same ? "revision same" : "revision" },
      element("div", { class: "head" }, notes.filter(Boolean).join(", ")),
      k > 0 && !same && state.marks ? marked(texts[k - 1], texts[k])
        : element("div", { class: "text" }, texts[k] || "(empty)"),
      ...data.tables.filter((each) => each.set === state.set && each.model === m && each.opponent === opponent)
        .map((each) => judgement(each, i, k)));
  };
  const detail = (i, width) => {
    const set = data.sets[state.set];
    const block = (name, text, kind) =>
      element("div", { class: kind, tabindex: kind === "document" ? "0" : false }, element("b", {}, name), text);
    const most = Math.max(...models().map((m) => textsOf(set, m, i).length));
    const columns = models().map((m) => {
      const texts = textsOf(set, m, i), cut = cutOf(set, m, i);
      return element("div", {}, element("h5", {}, swatch(data.models[m]), data.models[m].label),
        ...texts.map((_, k) => revision(m, i, k, texts, cut)),
        ...Array.from({ length: most - texts.length }, () => element("div"))); // every column has all rows
    });
    return element("tr", { class: "opened" }, element("td", { class: "detail", colspan: width },
      element("div", { class: "inside" },
        block(`Document ${set.ids[i]}`, set.prompts[i], "document"),
        set.golds[i] === null ? null : block("Human gold", set.golds[i], "gold"),
        element("div", { class: "columns", style: `--rows: ${most + 1}` }, ...columns))));
  };

  const columns = () => [
    { key: "order", label: "document" },
    { key: "gold", label: "gold words", value: (i) => {
      const gold = data.sets[state.set].golds[i];
      return gold === null ? null : wordCount(gold);
    } },
    ...models().flatMap((m) => [
      { key: `m${m}`, label: data.models[m].label, model: m, value: (i) => {
        const p = verdicts(m, i);
        return p ? last(p) : null;
      } },
      { key: `d${m}`, label: "change", model: m, value: (i) => {
        const p = verdicts(m, i);
        return p && last(p) !== null && p[0] !== null ? last(p) - p[0] : null;
      } },
    ]),
  ];

  const chosen = () => {
    const set = data.sets[state.set], wanted = state.search.toLowerCase(), keep = FILTERS[state.show][1];
    const model = models().includes(state.model) ? state.model : models()[0];
    const rows = set.ids.map((_, i) => i).filter((i) => {
      if (state.show !== "all" && model !== undefined
        && !keep(verdicts(model, i) || [null], textsOf(set, model, i), cutOf(set, model, i))) return false;
      if (!wanted) return true;
      return [set.ids[i], set.prompts[i], set.golds[i] || "", ...models().flatMap((m) => textsOf(set, m, i))]
        .some((text) => text.toLowerCase().includes(wanted));
    });
    const column = columns().find((each) => each.key === state.sort);
    if (!column || !column.value) return state.down ? rows.reverse() : rows;
    const value = new Map(rows.map((i) => [i, column.value(i)]));
    return rows.sort((i, j) => {
      const a = value.get(i), b = value.get(j);
      if (a === null || b === null) return (a === null) - (b === null) || i - j; // the missing last
      return (state.down ? b - a : a - b) || i - j;
    });
  };

  const heading = () => element("thead", {}, element("tr", {}, ...columns().map((column) => {
    const active = state.sort === column.key;
    const arrow = active ? (state.down ? " ↓" : " ↑") : "";
    return element("th", { scope: "col", "aria-sort": active ? (state.down ? "descending" : "ascending") : false },
      element("button", { type: "button", "data-key": column.key, onclick: () => {
        // A number is first shown from its top.
        state.down = active ? !state.down : column.key !== "order";
        state.sort = column.key;
        draw(column.key);
      } }, column.model !== undefined && column.key[0] === "m" ? swatch(data.models[column.model]) : "",
      column.label + arrow));
  })));
  const row = (i) => {
    const set = data.sets[state.set], open = state.open.has(i);
    const toggle = () => {
      if (open) state.open.delete(i); else state.open.add(i);
      draw(null, i);
    };
    const beginning = set.prompts[i].slice(0, 140).replace(/\s+/g, " ");
    return element("tr", { class: open ? "" : "closed", "data-id": set.ids[i] }, ...columns().map((column) => {
      if (column.key === "order") {
        return element("td", {}, element("button", { type: "button", class: "open", "aria-expanded": String(open),
          "data-row": i, onclick: toggle }, element("small", {}, `${set.ids[i]} `), beginning));
      }
      const value = column.value(i);
      const text = value === null ? "none" : column.key === "gold" ? String(value)
        : column.key[0] === "d" ? signed(value) : rounded(value);
      return element("td", {}, text);
    }));
  };

  const draw = (focusKey = null, focusRow = null) => {
    const rows = chosen(), shown = rows.slice(0, state.shown), width = columns().length;
    const body = element("tbody", {}, ...shown.flatMap((i) => (state.open.has(i) ? [row(i), detail(i, width)] : [row(i)])));
    table.replaceChildren(heading(), body);
    const total = data.sets[state.set].ids.length;
    count.textContent = `${rows.length.toLocaleString("en")} of ${total.toLocaleString("en")} documents`
      + (rows.length > shown.length ? `, the first ${shown.length} shown` : "");
    more.hidden = rows.length <= shown.length;
    if (focusKey !== null) table.querySelector(`[data-key="${focusKey}"]`)?.focus();
    if (focusRow !== null) table.querySelector(`[data-row="${focusRow}"]`)?.focus();
    remember();
  };

  // The state in the address (#documents&sort=m0&down=1…), so that a view can be sent to others.
  const remember = () => {
    const words = new URLSearchParams();
    for (const key of ["set", "view", "model"]) if (state[key]) words.set(key, state[key]);
    if (state.show !== "all") words.set("show", state.show);
    if (state.search) words.set("search", state.search);
    if (!state.marks) words.set("marks", "0");
    if (state.sort !== "order" || state.down) { words.set("sort", state.sort); words.set("down", +state.down); }
    if (state.open.size) words.set("open", [...state.open].join(","));
    if (!words.size && !location.hash.startsWith("#documents&")) return;
    try { history.replaceState(null, "", `#documents${words.size ? "&" + words : ""}`); } catch { /* not allowed here */ }
  };
  const recall = () => {
    if (!location.hash.startsWith("#documents&")) return;
    const words = new URLSearchParams(location.hash.slice("#documents&".length));
    const index = (key, size) => Math.min(Math.max(0, Math.trunc(Number(words.get(key))) || 0), Math.max(0, size - 1));
    state.set = index("set", data.sets.length);
    state.view = index("view", data.views.length);
    state.model = index("model", data.models.length);
    if (Object.hasOwn(FILTERS, words.get("show") || "")) state.show = words.get("show");
    state.search = words.get("search") || "";
    state.marks = words.get("marks") !== "0";
    state.sort = words.get("sort") || "order";
    state.down = words.get("down") === "1";
    const size = data.sets[state.set].ids.length;
    state.open = new Set((words.get("open") || "").split(",").filter(Boolean).map(Number)
      .filter((i) => Number.isInteger(i) && i >= 0 && i < size));
  };

  const options = (select, entries) =>
    select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
  options(form.set, data.sets.map((set, i) => [i, `${set.name}, ${set.role}`]));
  options(form.view, data.views.map((each, i) => [i, `${data.judges[each.judge]}, against ${each.against}`]));
  options(form.model, data.models.map((model, i) => [i, model.label]));
  options(form.show, Object.entries(FILTERS).map(([key, [text]]) => [key, text]));
  recall();
  for (const key of ["set", "view", "model", "show", "search"]) form[key].value = state[key];
  form.marks.checked = state.marks;
  form.view.parentElement.hidden = data.views.length < 2;
  let waiting = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (event.target.name === "set") state.open.clear();
      for (const key of ["set", "view", "model"]) state[key] = Number(form[key].value);
      state.show = form.show.value;
      state.search = form.search.value.trim();
      state.marks = form.marks.checked;
      state.shown = STEP;
      draw();
    }, event.target.name === "search" ? 200 : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { state.shown += 4 * STEP; draw(); });
  form.hidden = false;
  const asked = location.hash.startsWith("#documents&");
  draw();
  if (asked) document.getElementById("documents").scrollIntoView({ behavior: "instant" });
})();
