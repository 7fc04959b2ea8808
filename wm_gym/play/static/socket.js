// The connection to the server; wm_gym/play/protocol.py describes what goes over it.

export const FULL = 1013;

/** Opens the WebSocket. `on` has functions for "text" (an object), "frame" ({header, views}) and "close" (the event). */
export function connect(on) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/play`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? on.text(JSON.parse(data)) : on.frame(decode(data)));
  socket.onclose = (event) => on.close(event);
  return {
    send(type, fields = {}) {
      if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type, ...fields }));
    },
    close: () => socket.close(),
  };
}

/** A binary message: length of the header, header, pixels of each view. */
function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let start = 4 + length;
  const views = {};
  for (const { name, height, width, channels } of header.views) {
    views[name] = toImage(new Uint8Array(buffer, start, height * width * channels), height, width, channels);
    start += height * width * channels;
  }
  return { header, views };
}

function toImage(pixels, height, width, channels) {
  const image = new ImageData(width, height);
  const step = channels === 3 ? 1 : 0; // grey is repeated
  for (let from = 0, to = 0; from < pixels.length; from += channels, to += 4) {
    image.data[to] = pixels[from];
    image.data[to + 1] = pixels[from + step];
    image.data[to + 2] = pixels[from + 2 * step];
    image.data[to + 3] = 255;
  }
  return image;
}
