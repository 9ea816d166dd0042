// The settings inside a saved picture: the text chunk "aig" of a PNG file, as aig/export.py writes it.
const LONGEST = 20000; // characters of settings

// "" where there are none; an error, meant for people, for what is no whole PNG.
export const settingsOf = (bytes) => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  if (bytes.length < 20 || word(1, 4) !== "PNG" || bytes[0] !== 0x89) throw Error("This file is no PNG picture; drop one that was saved here.");
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at), kind = word(at + 4, at + 8), from = at + 8;
    if (from + length + 4 > bytes.length) throw Error("This picture is broken: it ends in the middle.");
    if (kind === "tEXt" && word(from, from + 4) === "aig\0" && length <= LONGEST) return word(from + 4, from + length);
    if (kind === "IEND") break;
    at = from + length + 4;
  }
  return "";
};
