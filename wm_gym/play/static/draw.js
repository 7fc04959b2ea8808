// Canvases: frames, thumbnails and the map.

/** Draws an ImageData at its own size; CSS enlarges it. */
export function drawImage(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
    canvas.style.aspectRatio = `${image.width} / ${image.height}`;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A map of the maze: walls, targets, the path so far and who walks it. Grid units, y upwards. */
export class MazeMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.maze = null;
    this.path = [];
  }

  /** `maze` has walls [y][x], targets [[x, y]], path [[x, y]] and context_points, how many of them precede the dream. */
  set(maze) {
    this.maze = maze;
    this.path = maze?.path ?? [];
    this.contextPoints = maze?.context_points ?? 0;
  }

  /** Goes on to a pose. */
  walk([x, y], inContext) {
    const end = this.path.at(-1);
    if (end && Math.hypot(end[0] - x, end[1] - y) < 0.01) return;
    this.path.push([x, y]);
    if (inContext) this.contextPoints = this.path.length;
  }

  /** `pose` is [x, y, heading x, heading y], `target` {index, color: [r, g, b] in 0..1 or null} or null. */
  draw(pose, target) {
    if (!this.maze || !pose) return;
    const side = this.#fit();
    const rows = this.maze.walls.length;
    const unit = side / (Math.max(rows, this.maze.walls[0].length) + 0.6);
    const context = this.canvas.getContext("2d");
    const colors = Object.fromEntries(
      ["wall", "floor", "dream", "real", "soft", "ink"].map((name) => [name, this.#color(name)]),
    );
    const at = ([x, y]) => [(x + 0.3) * unit, (rows - y + 0.3) * unit];
    context.fillStyle = colors.wall;
    context.fillRect(0, 0, side, side);
    context.fillStyle = colors.floor;
    this.maze.walls.forEach((row, y) => row.forEach((wall, x) => {
      const [left, bottom] = at([x, y]);
      if (!wall) context.fillRect(left - 0.3, bottom - unit - 0.3, unit + 0.6, unit + 0.6);
    }));
    this.#drawPath(context, this.path.slice(0, this.contextPoints), at, colors.real, unit);
    this.#drawPath(context, this.path.slice(Math.max(0, this.contextPoints - 1)), at, colors.dream, unit);
    this.maze.targets.forEach((place, index) => this.#drawTarget(context, at(place), unit, index === target?.index, target?.color, colors));
    this.#drawWalker(context, at(pose), pose, unit, colors);
  }

  #fit() {
    const side = Math.round(this.canvas.clientWidth * devicePixelRatio);
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    return side;
  }

  #color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  #drawPath(context, points, at, color, unit) {
    if (points.length < 2) return;
    context.strokeStyle = color;
    context.globalAlpha = 0.75;
    context.lineWidth = unit * 0.13;
    context.lineJoin = context.lineCap = "round";
    context.beginPath();
    points.forEach((point) => context.lineTo(...at(point)));
    context.stroke();
    context.globalAlpha = 1;
  }

  #drawTarget(context, [x, y], unit, isCurrent, color, colors) {
    context.beginPath();
    context.arc(x, y, unit * (isCurrent ? 0.28 : 0.18), 0, 2 * Math.PI);
    context.fillStyle = isCurrent && color ? `rgb(${color.map((value) => Math.round(255 * value)).join(" ")})` : colors.soft;
    context.globalAlpha = isCurrent ? 1 : 0.5;
    context.fill();
    context.globalAlpha = 1;
    if (!isCurrent) return;
    context.strokeStyle = colors.ink;
    context.lineWidth = unit * 0.06;
    context.stroke();
  }

  #drawWalker(context, [x, y], [, , headingX, headingY], unit, colors) {
    context.save();
    context.translate(x, y);
    context.rotate(Math.atan2(-headingY, headingX));
    context.fillStyle = colors.dream;
    context.strokeStyle = colors.floor;
    context.lineWidth = unit * 0.1;
    context.beginPath();
    context.moveTo(unit * 0.46, 0);
    context.lineTo(-unit * 0.3, unit * 0.32);
    context.lineTo(-unit * 0.14, 0);
    context.lineTo(-unit * 0.3, -unit * 0.32);
    context.closePath();
    context.stroke();
    context.fill();
    context.restore();
  }
}
