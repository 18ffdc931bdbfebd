// A label for each image, typed or clicked, and a CSV file of them. Nothing is sent anywhere.

const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const cards = [...document.querySelectorAll(".card")];
const labels = data.names.map(() => "");
const classes = new Set(data.classes);
const shortcuts = new Map(); // key -> class
const field = element("field");
let current = 0;
let unsaved = false;

// ------------------------------------------------------------------------------ the CSV file
// A spreadsheet takes a cell that begins so for a formula; the apostrophe is taken off again
// when the file is read: csv_cell in shared/runtime/media.py, whose rule this is.
const number = /^[+-]?(\d+(\.\d+)?([eE][+-]?\d+)?|inf|nan)$/;
const formula = /(?<![^;\t\r\n])('*)(?=[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])/g;
const cell = (text) => {
  const safe = number.test(text) ? text : text.replace(formula, "'$1");
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};
const csv = () => {
  const rows = [["file", "label"], ...data.kept, ...data.names.map((n, i) => [n, labels[i]])];
  const text = rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
  return /[^\0-\x7f]/.test(text) ? `\ufeff${text}` : text; // so that Excel reads it as UTF-8
};

const save = () => {
  const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = data.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  unsaved = false;
  remember();
  count();
  say(`${element("status").textContent}, saved as ${data.file} where this browser keeps downloads`);
};

// ------------------------------------------------------------- the browser keeps what is typed
const remember = () => {
  try {
    localStorage.setItem(data.key, JSON.stringify({ labels, unsaved }));
  } catch {
    // the browser does not allow it; the file is saved all the same
  }
};
const recall = () => {
  try {
    const kept = JSON.parse(localStorage.getItem(data.key)) ?? { labels: [], unsaved };
    kept.labels.forEach((label, i) => put(i, label));
    unsaved = kept.unsaved;
  } catch {
    // as above
  }
};

// ----------------------------------------------------------------------------------- the page
const say = (text) => {
  element("status").textContent = text;
};
const count = () => {
  const done = labels.filter(Boolean).length;
  say(`${done} of ${labels.length} labeled${unsaved ? ", not saved yet" : ""}`);
};

// A key never changes its class while somebody types.
const giveKey = (name) => {
  const taken = (key) => shortcuts.has(key) || [...classes].some((other) => other.startsWith(key));
  const digit = [..."123456789"].find((key) => !taken(key));
  if ([...name].length > 1 && digit) shortcuts.set(digit, name);
  else if ([...name].length === 1 && !shortcuts.has(name)) shortcuts.set(name, name);
};

const drawClasses = () => {
  const names = [...classes];
  const keys = new Map([...shortcuts].map(([key, name]) => [name, key]));
  const buttons = names.map((name) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    if (keys.has(name) && keys.get(name) !== name) {
      const key = document.createElement("kbd");
      key.textContent = ` ${keys.get(name)}`;
      button.append(key);
    }
    button.onclick = () => assign(name);
    return button;
  });
  element("classes").replaceChildren(...buttons);
  const options = names.map((name) => Object.assign(document.createElement("option"), { value: name }));
  element("known").replaceChildren(...options);
};

const put = (i, label) => {
  labels[i] = label;
  cards[i].querySelector("b").textContent = label;
  if (label && !classes.has(label)) {
    classes.add(label);
    giveKey(label);
    drawClasses();
  }
};

const show = (i) => {
  cards[current].removeAttribute("aria-current");
  current = i;
  const card = cards[i];
  const image = card.querySelector("img");
  card.setAttribute("aria-current", "true");
  element("large").src = image.src;
  element("large").alt = image.alt;
  element("large").className = image.className;
  element("name").textContent = `${i + 1} of ${cards.length}: ${image.alt}`;
  field.value = labels[i];
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
};

const assign = (text) => {
  const label = text.trim().normalize("NFC");
  if (label === "-1" || label === "-1.0") return say(`${label} means no label; write another class`);
  put(current, label);
  unsaved = true;
  remember();
  count();
  const after = [...cards.keys()].map((i) => (current + 1 + i) % cards.length);
  const next = label ? after.find((i) => !labels[i]) : current;
  show(next ?? current);
};

const move = (steps) => show(Math.min(Math.max(current + steps, 0), cards.length - 1));
const columns = () => cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;

addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s") {
    event.preventDefault();
    save();
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === field) {
    if (event.key === "Enter") assign(field.value);
    else if (event.key === "Escape") show(current);
    else return;
    event.preventDefault();
    return;
  }
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  if (event.key in steps) move(steps[event.key]);
  else if (shortcuts.has(event.key)) assign(shortcuts.get(event.key));
  else if (event.key === "Backspace" || event.key === "Delete") assign("");
  else if (event.key === "Enter" && cards.includes(event.target)) {
    field.focus();
    field.select();
  } else if (event.key.length === 1 && event.key !== " ") {
    field.focus();
    field.value = event.key;
  } else return;
  event.preventDefault();
});

cards.forEach((card, i) => {
  const image = card.querySelector("img");
  if (image.src.startsWith("data:image/png")) image.className = "small";
  card.onclick = () => show(i);
});
element("set").onclick = () => assign(field.value);
element("save").onclick = save;
addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});
classes.forEach(giveKey);
drawClasses();
recall();
count();
show(0);
