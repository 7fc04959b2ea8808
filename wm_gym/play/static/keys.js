// Keys and pads: which are held, and which action that means.

/** Calls `changed(action or null)` when what is held means something else than before. */
export class Pads {
  constructor(element, controls, changed) {
    this.controls = controls;
    this.changed = changed;
    this.held = []; // names of buttons, oldest first
    this.sent = null;
    this.elements = new Map();
    element.className = controls.layout;
    element.replaceChildren(...controls.buttons.map((button) => this.#makePad(button)));
    this.names = new Map(controls.buttons.flatMap((button) => button.keys.map((key) => [key, button.name])));
  }

  /** Whether a key (KeyboardEvent.code) belongs to a pad. */
  owns(code) {
    return this.names.has(code);
  }

  keyDown(code) {
    this.#press(this.names.get(code));
  }

  keyUp(code) {
    this.#release(this.names.get(code));
  }

  releaseAll() {
    this.held = [];
    this.#update();
  }

  /** Lights the pads of an action that somebody else took. */
  light(action) {
    const combination = Object.entries(this.controls.actions).find(([, value]) => value === action);
    this.#show(combination ? combination[0].split("+") : []);
  }

  #makePad({ name, label }) {
    const pad = document.createElement("button");
    pad.type = "button";
    pad.dataset.name = name;
    pad.textContent = { forward: "↑", left: "↶", right: "↷" }[name] ?? name;
    pad.setAttribute("aria-label", label);
    pad.title = label;
    pad.addEventListener("pointerdown", (event) => {
      pad.setPointerCapture(event.pointerId);
      this.#press(name);
    });
    for (const type of ["pointerup", "pointercancel", "lostpointercapture", "blur"]) {
      pad.addEventListener(type, () => this.#release(name));
    }
    // A pad that has the focus is held by Enter; without a pointer there is no pointerdown.
    pad.addEventListener("keydown", (event) => event.code === "Enter" && this.#press(name));
    pad.addEventListener("keyup", (event) => event.code === "Enter" && this.#release(name));
    pad.addEventListener("contextmenu", (event) => event.preventDefault());
    this.elements.set(name, pad);
    return pad;
  }

  #press(name) {
    if (this.held.includes(name)) return;
    this.held.push(name);
    this.#update();
  }

  #release(name) {
    if (!this.held.includes(name)) return;
    this.held = this.held.filter((other) => other !== name);
    this.#update();
  }

  #update() {
    this.#show(this.held);
    const action = this.action();
    if (action !== this.sent) {
      this.sent = action;
      this.changed(action);
    }
  }

  #show(names) {
    for (const [name, pad] of this.elements) pad.toggleAttribute("data-on", names.includes(name));
  }

  /** The action of what is held. Of combinations that mean nothing, the oldest keys are dropped. */
  action() {
    const order = this.controls.buttons.map(({ name }) => name);
    for (let first = 0; first < this.held.length; first++) {
      const names = order.filter((name) => this.held.slice(first).includes(name));
      const action = this.controls.actions[names.join("+")];
      if (action !== undefined) return action;
    }
    return null;
  }
}
