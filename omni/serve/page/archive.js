// A conversation as one file to keep: conversation.json and a WAV file for every question and answer, in a ZIP archive.
// Made in the browser: nothing is written anywhere else.

import { RATE } from "./pcm.js";

// Entries {name, bytes: Uint8Array} → the archive's bytes. Stored, not compressed: speech hardly shrinks.
export function zip(entries, when = new Date()) {
  const names = new TextEncoder();
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, bytes } of entries) {
    const path = names.encode(name);
    const common = fields([20, 2], [0x0800, 2], [0, 2], [dosTime(when), 2], [dosDate(when), 2], [crc32(bytes), 4]);
    const sizes = fields([bytes.length, 4], [bytes.length, 4], [path.length, 2], [0, 2]);
    const local = [fields([0x04034b50, 4]), common, sizes, path, bytes];
    directory.push(fields([0x02014b50, 4], [20, 2]), common, sizes, fields([0, 8], [0, 2], [offset, 4]), path);
    parts.push(...local);
    offset += length(local);
  }
  const end = fields([0x06054b50, 4], [0, 4], [entries.length, 2], [entries.length, 2], [length(directory), 4]);
  return concatenate([...parts, ...directory, end, fields([offset, 4], [0, 2])]);
}

// Int16Array, mono → the bytes of its WAV file.
export function wav(pcm, rate = RATE) {
  const data = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
  const text = (letters) => new TextEncoder().encode(letters);
  const format = fields([16, 4], [1, 2], [1, 2], [rate, 4], [2 * rate, 4], [2, 2], [16, 2]);
  const head = [text("RIFF"), fields([36 + data.length, 4]), text("WAVEfmt "), format, text("data")];
  return concatenate([...head, fields([data.length, 4]), data]);
}

// Offer bytes as a download, and forget them.
export function save(name, bytes, type) {
  const url = URL.createObjectURL(new Blob([bytes], { type }));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // by then the browser has its copy
}

// [value, bytes] pairs, little-endian, one after another; wide ones are zeros.
function fields(...pairs) {
  const view = new DataView(new ArrayBuffer(pairs.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of pairs) {
    if (size === 2) view.setUint16(at, value, true);
    else if (size === 4) view.setUint32(at, value, true);
    at += size;
  }
  return new Uint8Array(view.buffer);
}

function concatenate(parts) {
  const whole = new Uint8Array(length(parts));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function length(parts) {
  return parts.reduce((sum, part) => sum + part.length, 0);
}

const dosTime = (when) => (when.getHours() << 11) | (when.getMinutes() << 5) | (when.getSeconds() >> 1);
const dosDate = (when) => ((when.getFullYear() - 1980) << 9) | ((when.getMonth() + 1) << 5) | when.getDate();

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
