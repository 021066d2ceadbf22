// Filters: catalogues as chips, and the catalogue's own columns as a condition.

import { button, element, make, number } from "./dom.js";

export function showChips(catalogues, chosen, changed) {
  const box = element("chips");
  box.hidden = catalogues.length < 2;
  const total = catalogues.reduce((sum, catalogue) => sum + catalogue.items, 0);
  const chip = (words, count, pressed, press) => {
    const made = button(null, "chip", () => {
      const place = [...box.children].indexOf(made);
      press();
      showChips(catalogues, chosen, changed);
      box.children[place].focus();
      changed();
    });
    made.title = words;
    made.append(make("span", "", words), " ", make("small", "", number(count)));
    made.setAttribute("aria-pressed", String(pressed));
    return made;
  };
  box.replaceChildren(
    chip("All", total, !chosen.size, () => chosen.clear()),
    ...catalogues.map(({ name, items }) => chip(name, items, chosen.has(name), () => {
      if (!chosen.delete(name)) chosen.add(name);
    })),
  );
}

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\`]/g, "\\$&");
const RANGES = { number: "number", date: "date", time: "datetime-local" };

// The parts of a condition that the fields of one column make, and the fields' values in a condition made so.
function parts(name, kind, values) {
  const column = `\`${name}\``;
  if (kind === "boolean") return values.is ? [`${column} = ${values.is}`] : [];
  if (kind === "text") return values.has ? [`${column} ILIKE ${quoted(`%${values.has}%`)}`] : [];
  const literal = (value) => (kind === "number" ? String(Number(value)) : quoted(value.replace("T", " ")));
  return [["from", ">="], ["to", "<="]].flatMap(([end, sign]) => (values[end] ? [`${column} ${sign} ${literal(values[end])}`] : []));
}

function read(name, kind, where) {
  const column = `\`${escaped(name)}\``;
  const found = (pattern) => where.match(new RegExp(`(?:^|AND )${column} ${pattern}(?= AND |$)`))?.[1];
  const text = (value) => value?.replaceAll("''", "'");
  if (kind === "boolean") return { is: found("= (true|false)") };
  if (kind === "text") return { has: text(found("ILIKE '%((?:[^']|'')*)%'")) };
  const value = kind === "number" ? "([-+.e\\d]+)" : "'([-:. \\d]+)'";
  const shown = (text) => (kind === "time" ? text?.replace(" ", "T") : text);
  return { from: shown(found(`>= ${value}`)), to: shown(found(`<= ${value}`)) };
}

export function showFilters(columns, where, changed) {
  const names = Object.keys(columns);
  element("filters").hidden = !names.length;
  showCondition(where);
  const values = Object.fromEntries(names.map((name) => [name, read(name, columns[name], where)]));
  const compose = () => names.flatMap((name) => parts(name, columns[name], values[name])).join(" AND ");
  const plain = compose() === where;
  const form = element("filter-fields");
  const apply = () => { showCondition(compose()); changed(compose()); };
  const field = (name, key, words, control) => {
    const label = make("label", "", words);
    control.value = plain ? values[name][key] || "" : "";
    control.addEventListener("change", () => { values[name][key] = control.value; apply(); });
    label.append(control);
    return label;
  };
  const input = (type, placeholder = "") => Object.assign(make("input"), { type, step: "any", placeholder });
  form.replaceChildren(...names.map((name) => {
    const kind = columns[name];
    const group = make("fieldset");
    group.append(make("legend", "", name));
    if (kind === "boolean") {
      const select = make("select");
      for (const [value, words] of [["", "any"], ["true", "yes"], ["false", "no"]]) {
        select.append(Object.assign(make("option", "", words), { value }));
      }
      group.append(field(name, "is", "is ", select));
    } else if (RANGES[kind]) {
      group.append(field(name, "from", "from ", input(RANGES[kind])), field(name, "to", "to ", input(RANGES[kind])));
    } else {
      group.append(field(name, "has", "contains ", input("text")));
    }
    return group;
  }));
  const condition = element("condition");
  condition.onchange = () => { showFilters(columns, condition.value.trim(), changed); changed(condition.value.trim()); };
  element("no-filters").onclick = () => {
    showFilters(columns, "", changed);
    element("filters").querySelector("summary").focus();
    changed("");
  };
}

function showCondition(where) {
  element("condition").value = where;
  element("filters-set").textContent = where ? "on" : "";
  element("no-filters").hidden = !where;
}
