// rows.js: nodes of the page that are filled again and again. A node is made for a key when the key first comes, and goes
// with it; what has not changed is not touched, so that nothing grows, flickers or is read aloud twice.

/** Text of an element, which holds nothing else. */
export function put(element, text) {
  text = String(text);
  if (element.firstChild === null) element.append(text);
  else if (element.firstChild.data !== text) element.firstChild.data = text;
}

/** A name, which may go on in the next line behind a / or _. */
export function putName(element, name) {
  if (element.textContent === name) return;
  const pieces = name.split(/(?<=[/_])/);
  element.replaceChildren(...pieces.flatMap((piece, i) => i > 0 ? [document.createElement("wbr"), piece] : [piece]));
}

/** An attribute data-NAME of an element. */
export function mark(element, name, value) {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

export class Rows {
  #parent;
  #template;
  #rows = new Map(); // key -> { node, cells }

  constructor(parent) {
    this.#parent = parent;
    this.#template = document.getElementById(`row-${parent.dataset.rows}`).content.firstElementChild;
  }

  /** One node for each item, in their order; fill(cells, item, node) writes into it. */
  draw(items, key, fill) {
    const gone = new Set(this.#rows.keys());
    let next = this.#parent.firstElementChild;
    for (const item of items) {
      const row = this.#row(key(item));
      gone.delete(key(item));
      fill(row.cells, item, row.node);
      if (row.node === next) next = next.nextElementSibling;
      else this.#parent.insertBefore(row.node, next);
    }
    for (const key of gone) {
      this.#rows.get(key).node.remove();
      this.#rows.delete(key);
    }
  }

  #row(key) {
    let row = this.#rows.get(key);
    if (row === undefined) {
      const node = this.#template.cloneNode(true);
      row = { node, cells: Object.fromEntries([...node.querySelectorAll("[data-cell]")].map((c) => [c.dataset.cell, c])) };
      this.#rows.set(key, row);
    }
    return row;
  }
}
