// chart.js: lines over the last minutes, in SVG whose nodes are made once. The drawing is stretched over its box; what must
// not be stretched (labels) is HTML beside it.

import { clockTime } from "./numbers.js";
import { put } from "./rows.js";

const WIDTH = 1000, HEIGHT = 100, LINES = 6; // of the drawing, and of its grid at most
const GAP_MS = 3500; // a line ends where nothing was heard for so long

function make(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function html(name, className) {
  const node = document.createElement(name);
  node.className = className;
  return node;
}

/** A scale says which values have lines, the lowest first, and where a value stands between 0 and 1. */
export function linear(highest) {
  const most = Math.max(highest, 4), unit = 10 ** Math.floor(Math.log10(most));
  const top = [1, 2, 4, 6, 8, 10].map((n) => n * unit).find((n) => n >= most);
  return { lines: [0, top / 2, top], place: (v) => v / top };
}

export function decades(highest) { // of ms: 0.1 ms to at least 10 ms, at most 10 s
  const top = Math.min(4, Math.max(1, Math.ceil(Math.log10(Math.max(highest, 1)))));
  const lines = [];
  for (let power = -1; power <= top; power++) lines.push(10 ** power);
  return { lines, place: (v) => Math.min(1, Math.max(0, (Math.log10(v) + 1) / (top + 1))) };
}

export class Chart {
  #paths; #grid; #labels; #legend; #cursor; #when; #svg; #o;
  #points = [];
  #now = 0;        // of the right edge
  #pointer = null; // the point under the pointer

  /** o: series [{name, of: point -> number or null}], scale, format and mark (a value as text, in the legend and at
   * the grid), spanMs (of the whole width), from (its left edge as text), title. A point has its moment twice: `ms` on this
   * browser's clock places it, `at` on the node's clock is shown. */
  constructor(figure, o) {
    this.#o = o;
    this.#svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.#grid = Array.from({ length: LINES }, () => make("line", { x1: 0, x2: WIDTH, class: "grid" }));
    this.#paths = o.series.map((_, i) => make("path", { class: `line line-${i}` }));
    this.#cursor = make("line", { y1: 0, y2: HEIGHT, class: "cursor" });
    this.#svg.append(...this.#grid, ...this.#paths, this.#cursor);
    this.#labels = this.#grid.map(() => html("span", "label"));
    const plot = html("div", "plot"), legend = html("p", "legend");
    plot.append(this.#svg, ...this.#labels);
    this.#when = html("span", "when");
    this.#legend = o.series.map((series, i) => {
      const item = html("span", `key key-${i}`), value = html("b", "");
      item.append(`${series.name} `, value);
      legend.append(item, " ");
      return value;
    });
    legend.append(this.#when);
    const axis = html("p", "axis"), [from, to] = [html("span", ""), html("span", "")];
    from.append(o.from);
    to.append("now");
    axis.append(from, to);
    figure.append(legend, plot, axis);
    plot.addEventListener("pointermove", (event) => this.#point(event));
    plot.addEventListener("pointerleave", () => this.#point(null));
  }

  draw(points, now) {
    const { series, format, title } = this.#o;
    this.#now = now;
    const values = points.flatMap((p) => series.map((s) => s.of(p))).filter(Number.isFinite);
    const scale = this.#o.scale(Math.max(0, ...values));
    this.#points = points;
    this.#grid.forEach((line, i) => this.#rule(line, this.#labels[i], scale, scale.lines[i]));
    series.forEach((s, i) => this.#paths[i].setAttribute("d", this.#path(points, s, scale)));
    const last = points.at(-1);
    this.#svg.setAttribute("aria-label", `${title}: ${series.map((s) => `${s.name} ${format(s.of(last))}`).join(", ")}`);
    this.#read();
  }

  #x({ ms }) {
    return WIDTH * (1 - (this.#now - ms) / this.#o.spanMs);
  }

  #path(points, series, scale) {
    let d = "", last = null;
    for (const point of points) {
      const value = series.of(point), joins = last !== null && point.ms - last.ms <= GAP_MS;
      last = value === null ? null : point;
      if (value === null) continue;
      const y = HEIGHT * (1 - Math.min(1, scale.place(value)));
      d += `${joins ? "L" : "M"}${this.#x(point).toFixed(1)} ${y.toFixed(2)}${joins ? "" : "h0"}`; // h0: one alone is a dot
    }
    return d;
  }

  #rule(line, label, scale, value) {
    line.setAttribute("visibility", value === undefined ? "hidden" : "visible");
    label.hidden = value === undefined;
    if (value === undefined) return;
    const y = 1 - scale.place(value);
    line.setAttribute("y1", y * HEIGHT);
    line.setAttribute("y2", y * HEIGHT);
    label.style.top = `${y * 100}%`;
    put(label, this.#o.mark(value));
  }

  #point(event) {
    const box = this.#svg.getBoundingClientRect();
    const ms = event && this.#now - (1 - (event.clientX - box.left) / box.width) * this.#o.spanMs;
    const from = (point) => Math.abs(point.ms - ms);
    const nearest = this.#points.reduce((best, p) => best === null || from(p) < from(best) ? p : best, null);
    this.#pointer = event && nearest && from(nearest) <= GAP_MS / 2 ? nearest : null;
    this.#read();
  }

  // The legend tells the latest values, or those under the pointer.
  #read() {
    const i = this.#points.indexOf(this.#pointer), point = this.#points.at(i);
    if (point === undefined) return;
    this.#o.series.forEach((s, n) => put(this.#legend[n], this.#o.format(s.of(point))));
    put(this.#when, i < 0 ? "" : clockTime(point.at));
    this.#cursor.setAttribute("visibility", i < 0 ? "hidden" : "visible");
    if (i >= 0) for (const end of ["x1", "x2"]) this.#cursor.setAttribute(end, this.#x(point));
  }
}
