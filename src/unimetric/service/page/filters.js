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

// --- Conditions ----------------------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;
const unquoted = (text) => text.slice(1, -1).replaceAll("''", "'");
const pattern = (text) => quoted(`%${text.replace(/[\\%_]/g, "\\$&")}%`); // of texts that contain this one
const contained = (text) => unquoted(text).slice(1, -1).replace(/\\([\\%_])/g, "$1");
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\`]/g, "\\$&");
const RANGES = { number: "number", date: "date", time: "datetime-local" };

// The parts of a condition that the fields of one column make, and the fields' values in a condition made so.
function parts({ name, kind }, values) {
  const column = `\`${name}\``;
  if (kind === "boolean") return values.is ? [`${column} = ${values.is}`] : [];
  if (kind === "text") {
    const chosen = [...values.among].map(quoted);
    return [
      ...(chosen.length === 1 ? [`${column} = ${chosen[0]}`] : chosen.length ? [`${column} IN (${chosen.join(", ")})`] : []),
      ...(values.has ? [`${column} ILIKE ${pattern(values.has)}`] : []),
    ];
  }
  const literal = (value) => (kind === "number" ? String(Number(value)) : quoted(value.replace("T", " ")));
  return [["from", ">="], ["to", "<="]].flatMap(([end, sign]) => (values[end] ? [`${column} ${sign} ${literal(values[end])}`] : []));
}

const TEXT = "'(?:[^']|'')*'";

function read({ name, kind }, where) {
  const column = `\`${escaped(name)}\``;
  const found = (pattern) => where.match(new RegExp(`(?:^|AND )${column} ${pattern}(?= AND |$)`))?.[1];
  if (kind === "boolean") return { is: found("= (true|false)") };
  if (kind === "text") {
    const chosen = found(`(?:= |IN \\()(${TEXT}(?:, ${TEXT})*)\\)?`)?.match(new RegExp(TEXT, "g")) || [];
    const like = found("ILIKE ('%(?:[^']|'')*%')");
    return { among: new Set(chosen.map(unquoted)), has: like && contained(like) };
  }
  const value = kind === "number" ? "([-+.e\\d]+)" : "'([-:. \\d]+)'";
  const shown = (text) => (kind === "time" ? text?.replace(" ", "T") : text);
  return { from: shown(found(`>= ${value}`)), to: shown(found(`<= ${value}`)) };
}

// --- Fields --------------------------------------------------------------------------------------------------------

// Columns as the service describes them; those whose content is not known yet have a name and a kind only.
export function showFilters(columns, where, changed) {
  element("columns").hidden = !columns.length;
  showCondition(where);
  const values = new Map(columns.map((column) => [column.name, read(column, where)]));
  const compose = () => columns.flatMap((column) => parts(column, values.get(column.name))).join(" AND ");
  const plain = compose() === where;
  if (!plain) for (const column of columns) values.set(column.name, read(column, ""));
  const apply = () => { showCondition(compose()); changed(compose()); };
  element("filter-fields").replaceChildren(...columns.map((column) => fieldset(column, values.get(column.name), apply)));
  const condition = element("condition");
  condition.onchange = () => { showFilters(columns, condition.value.trim(), changed); changed(condition.value.trim()); };
  element("no-filters").onclick = () => {
    showFilters(columns, "", changed);
    element("filters").querySelector("summary").focus();
    changed("");
  };
}

function fieldset(column, values, apply) {
  const { name, kind, choices = [], low = null, high = null } = column;
  const group = make("fieldset");
  group.append(make("legend", "", name));
  const field = (key, words, control) => {
    const label = make("label", "", words);
    control.value = values[key] || "";
    control.addEventListener("change", () => { values[key] = control.value; apply(); });
    label.append(control);
    return label;
  };
  const input = (type, placeholder = "") => Object.assign(make("input"), { type, step: "any", placeholder });
  if (kind === "boolean") {
    const select = make("select");
    for (const [value, words] of [["", "any"], ["true", "yes"], ["false", "no"]]) {
      const count = choices.find((choice) => String(choice.value) === value)?.items;
      select.append(Object.assign(make("option", "", count === undefined ? words : `${words} (${number(count)})`), { value }));
    }
    group.append(field("is", "is ", select));
  } else if (RANGES[kind]) {
    const ends = [["from", low], ["to", high]];
    group.append(...ends.map(([end, limit]) => field(end, `${end} `, input(RANGES[kind], limit === null ? "" : String(limit)))));
    if (low !== null && kind !== "number") group.append(make("span", "span soft", `${day(low)} to ${day(high)}`));
  } else if (choices.length) {
    group.append(choiceChips(name, choices, values.among, apply));
  } else {
    group.append(field("has", "contains ", input("text")));
  }
  return group;
}

const day = (value) => String(value).replace("T", " ").slice(0, 16);

function choiceChips(name, choices, among, apply) {
  const box = make("div", "choices");
  for (const { value, items } of choices) {
    const text = String(value);
    const chip = button(null, "choice", () => {
      if (!among.delete(text)) among.add(text);
      chip.setAttribute("aria-pressed", String(among.has(text)));
      apply();
    });
    chip.append(make("span", "", text || "empty"), " ", make("small", "", number(items)));
    chip.title = text;
    chip.setAttribute("aria-pressed", String(among.has(text)));
    box.append(chip);
  }
  return box;
}

function showCondition(where) {
  element("condition").value = where;
  element("no-filters").hidden = !where;
  showSet("where", Boolean(where) && "filtered");
}

// --- Order ---------------------------------------------------------------------------------------------------------

const ENDS = {
  number: ["lowest first", "highest first"],
  text: ["A to Z", "Z to A"],
  boolean: ["no first", "yes first"],
  date: ["earliest first", "latest first"],
  time: ["earliest first", "latest first"],
};

// `order` is { sort, descending, byClass, copies }; `copies` is null where the service decides.
export function showOrder(columns, order, foldsCopies, changed) {
  const sort = element("sort");
  const options = [["", "", "most similar first"]];
  const sortable = [...columns, { name: "path", kind: "text" }];
  sortable.forEach(({ name, kind }, place) => {
    (ENDS[kind] || []).forEach((words, end) => options.push([`${place} ${end}`, name, `${name}, ${words}`]));
  });
  sort.replaceChildren(...options.map(([value, , words]) => Object.assign(make("option", "", words), { value })));
  const place = sortable.findIndex(({ name }) => name === order.sort);
  sort.value = place < 0 ? "" : `${place} ${Number(order.descending)}`;
  sort.onchange = () => {
    const [at, end] = sort.value.split(" ");
    changed({ sort: sort.value ? sortable[Number(at)].name : "", descending: end === "1" });
  };
  element("by-class").checked = order.byClass;
  element("by-class").onchange = ({ target }) => changed({ byClass: target.checked });
  element("fold-copies").checked = order.copies ?? foldsCopies;
  element("fold-copies").onchange = ({ target }) => changed({ copies: target.checked === foldsCopies ? null : target.checked });
  showSet("order", [order.sort && `by ${order.sort}`, order.byClass && "by class", order.copies && "copies folded"].filter(Boolean).join(", "));
}

const set = { where: "", order: "" };

function showSet(part, words) {
  set[part] = words || "";
  element("filters-set").textContent = Object.values(set).filter(Boolean).join(", ");
}
