// Extracts one entry of a zip given by the user, to show its picture. Formats: APPNOTE.TXT 4.3.7, 4.3.12, 4.3.16.

const END = 0x06054b50, CENTRAL = 0x02014b50, LOCAL = 0x04034b50;
const LARGEST = 256 * 2 ** 20; // bytes of an entry that is unpacked to be shown

/**
 * The content of the entry that the service calls `path`; null if it is not available (missing, encrypted, zip64, too
 * large, one of several of that name).
 */
export async function entryOf(zip, path) {
  const tail = await view(zip, Math.max(0, zip.size - 65557), zip.size);
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== END) end--;
  if (end < 0) return null;
  const [size, start] = [tail.getUint32(end + 12, true), tail.getUint32(end + 16, true)];
  const list = await view(zip, start, start + size);
  const wanted = path.replace(/^\/+/, "");
  const found = [];
  for (let at = 0; at + 46 <= list.byteLength && list.getUint32(at, true) === CENTRAL;) {
    const [flags, method] = [list.getUint16(at + 8, true), list.getUint16(at + 10, true)];
    const [packed, unpacked] = [list.getUint32(at + 20, true), list.getUint32(at + 24, true)];
    const [named, extra, comment] = [28, 30, 32].map((offset) => list.getUint16(at + offset, true));
    const bytes = new Uint8Array(list.buffer, list.byteOffset + at + 46, named);
    if (nameOf(bytes, flags) === wanted) {
      found.push(flags & 1 || unpacked > LARGEST ? null : [list.getUint32(at + 42, true), packed, method]);
    }
    at += 46 + named + extra + comment;
  }
  return found.length === 1 && found[0] ? unpack(zip, ...found[0]) : null;
}

/** What the service calls an entry (`_parts` in readers/formats.py); null for a folder or a name in code page 437. */
function nameOf(bytes, flags) {
  if (!(flags & 0x800) && bytes.some((byte) => byte > 127)) return null;
  const [name] = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes).split("\0"); // as zipfile cuts it
  if (name.endsWith("/")) return null;
  const parts = name.replaceAll("\\", "/").split("/").filter((part) => !["", ".", ".."].includes(part));
  return parts.join("/") || "(no name)";
}

async function unpack(zip, at, packed, method) {
  const head = await view(zip, at, at + 30);
  if (head.byteLength < 30 || head.getUint32(0, true) !== LOCAL) return null;
  const start = at + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  const content = zip.slice(start, start + packed);
  if (method === 0) return content;
  if (method !== 8) return null;
  return new Response(content.stream().pipeThrough(new DecompressionStream("deflate-raw"))).blob();
}

const view = async (blob, from, to) => new DataView(await blob.slice(from, to).arrayBuffer());
